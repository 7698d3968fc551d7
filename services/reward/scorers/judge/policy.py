"""A judge behind a policy service of our own, which reports the probability of tokens that it samples, and no others.

So several first tokens are drawn at temperature 1. Each comes with its exact probability, so that exactly this much is
unknown: what the drawn ones leave of 1. Of a judge that answers the question, two tokens have almost all of it. Of
another one the reward would be a guess, and there is an error instead (judge.max_uncertainty).
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path

from rlhf.client.policy import PolicyClient, PolicyModel
from rlhf.client.rpc_errors import SilentError
from rlhf.errors import ConfigError, InvalidRequestError, ServiceError
from rlhf.models.loading import load_tokenizer, tokenizer_digest
from rlhf.rollout import Prompt, Rollout, Sampling
from services.reward.scorers.judge.config import JudgeConfig
from services.reward.scorers.judge.questions import FirstTokens, Question
from services.reward.scorers.scorer import ErrorCode, ScoreError, ScorerError
from services.reward.scorers.text import ForgedTokenError, PlainText

CONNECT_SECONDS = 120.0
"""How long the policy service may take to answer when this one starts; it may still load its model."""


class PolicyBackend:
    """Implements JudgeBackend of judge/questions.py."""

    def __init__(self, config: JudgeConfig) -> None:
        """Raises: ConfigError if the tokenizer is missing or has no chat template."""
        if not Path(config.tokenizer).is_dir():
            raise ConfigError(f"scorer.judge.tokenizer is '{config.tokenizer}': no such directory")
        self._config = config
        try:
            self._tokenizer = load_tokenizer(config.tokenizer)
        except ConfigError as error:
            raise ConfigError(str(error).replace("model.path", "scorer.judge.tokenizer")) from error
        self._tokenizer_digest = tokenizer_digest(self._tokenizer)
        self._plain_text = PlainText(self._tokenizer)
        if not self._tokenizer.chat_template:
            raise ConfigError(f"scorer.judge.tokenizer is '{config.tokenizer}': it has no chat template")
        self._client: PolicyClient
        self._model: PolicyModel

    async def connect(self) -> str:
        """Returns the digest of the served weights, once the service answers. Raises: ConfigError."""
        # Sampling may be repeated: with the seed of a question the answer is the same.
        self._client = PolicyClient(self._config.endpoint, retries_generate=True)
        try:
            self._model = await self._client.get_model(CONNECT_SECONDS, wait_for_ready=True)
        except ServiceError as error:
            raise ConfigError(f"scorer.judge.endpoint is '{self._config.endpoint}': {error}") from None
        if self._model.tokenizer_digest != self._tokenizer_digest:
            raise ConfigError(
                f"scorer.judge.tokenizer is '{self._config.tokenizer}', which is not the tokenizer of the policy "
                f"service at {self._config.endpoint}; give the folder of the model that it serves"
            )
        return self._model.weights_digest

    async def ask(self, questions: Sequence[Question]) -> list[FirstTokens | ScoreError]:
        """Returns the first tokens that were drawn for each question; see JudgeBackend.ask."""
        await self._require_same_weights()
        outcomes: dict[int, FirstTokens | ScoreError] = {}
        prompts: dict[int, list[int]] = {}
        for index, question in enumerate(questions):
            ids = self._encode(question)
            if isinstance(ids, ScoreError):
                outcomes[index] = ids
            else:
                prompts[index] = ids
        size = min(self._config.max_concurrency, self._model.max_prompts)
        for start in range(0, len(prompts), size):
            outcomes |= await self._draw(dict(islice(prompts.items(), start, start + size)))
        return [outcomes[index] for index in range(len(questions))]

    async def close(self) -> None:
        """Ends the connection."""
        await self._client.close()

    def _encode(self, question: Question) -> list[int] | ScoreError:
        try:
            pieces, hidden = self._plain_text.render([{"role": "user", "content": question.text}])
            ids = self._plain_text.encode_rendered(pieces, hidden)
        except ForgedTokenError as error:
            return ScoreError(ErrorCode.INVALID_ITEM, str(error))
        if len(ids) >= self._model.max_sequence_tokens:
            return ScoreError(
                ErrorCode.TOO_LONG,
                f"the question to the judge has {len(ids)} tokens, the judge takes at most "
                f"{self._model.max_sequence_tokens} with its answer; send a shorter pair",
            )
        return ids

    async def _require_same_weights(self) -> None:
        try:
            served = await self._client.get_model(self._config.timeout_seconds)
        except ServiceError as error:
            raise _away(error) from None
        if served.weights_digest != self._model.weights_digest:
            raise self._other_weights()
        self._model = served

    async def _draw(self, prompts: dict[int, list[int]]) -> dict[int, FirstTokens | ScoreError]:
        """Returns what was drawn for the prompts of one call, by their index."""
        sampling = Sampling(max_new_tokens=1, temperature=1.0, completions_per_prompt=self._config.samples)
        # The same seed each time: the same question has the same answer.
        asked = [Prompt(group_id=str(index), prompt_ids=ids, seed=0) for index, ids in prompts.items()]
        drawn: dict[int, dict[int, tuple[str, float]]] = defaultdict(dict)
        rollouts = self._client.generate(
            asked,
            sampling,
            tokenizer_digest=self._tokenizer_digest,
            deadline_seconds=self._config.timeout_seconds,
        )
        try:
            async with aclosing(rollouts):
                async for rollout in rollouts:
                    self._note(drawn[int(rollout.group_id)], rollout)
        except SilentError:
            seconds = self._config.timeout_seconds
            late = ScoreError(ErrorCode.TIMEOUT, f"the judge took longer than judge.timeout_seconds = {seconds:g}")
            return dict.fromkeys(prompts, late)
        except ServiceError as error:
            raise _away(error) from None
        return {index: FirstTokens(list(drawn[index].values()), is_likeliest=False) for index in prompts}

    def _note(self, tokens: dict[int, tuple[str, float]], rollout: Rollout) -> None:
        if set(rollout.policy_versions) != {self._model.policy_version}:
            raise self._other_weights()
        token = rollout.completion_ids[0]
        tokens[token] = (str(self._tokenizer.decode([token])), rollout.logprobs[0])

    def _other_weights(self) -> ScorerError:
        return ScorerError(
            ErrorCode.UNAVAILABLE,
            f"the policy service at {self._config.endpoint} serves other weights than when this service started, and "
            "rewards of two judges must not be mixed; restart this service, or serve the judge's weights again",
        )


def _away(error: ServiceError) -> ScorerError:
    code = ErrorCode.SCORER_FAILED if isinstance(error, InvalidRequestError) else ErrorCode.UNAVAILABLE
    return ScorerError(code, f"the judge's {error}")
