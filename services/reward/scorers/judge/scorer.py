"""Rewards from a language model that is asked: its probability of "Yes", and of two answers, of the better one."""

import json
from collections.abc import Sequence
from typing import ClassVar, Literal

from blake3 import blake3
from pydantic import field_validator

from rlhf.client.sync import LoopThread
from services.reward.scorers.item_texts import ItemReader
from services.reward.scorers.judge.config import JudgeConfig
from services.reward.scorers.judge.questions import (
    TEMPLATES,
    JudgeBackend,
    Question,
    pairwise_question,
    pointwise_question,
    probability_of_first,
)
from services.reward.scorers.scorer import Decoder, ErrorCode, Item, ScoreError, ScorerInfo, TextPair
from services.reward.scorers.section import TextScorerSection


class JudgeScorer:
    """A PairScorer that asks a judge. Its requests run in an event loop of its own, in a thread of its own."""

    def __init__(self, config: JudgeConfig, backend: JudgeBackend, decoder: Decoder | None) -> None:
        """Connects to the judge.

        Args: decoder: turns token ids into text; None if only text is taken.
        Raises: ConfigError if the judge cannot be used.
        """
        self._config = config
        self._backend = backend
        self._reader = ItemReader(decoder)
        self._thread = LoopThread("judge")
        try:
            weights = self._thread.run(backend.connect())
        except BaseException:
            self._thread.close()
            raise
        name = "policy" if config.backend == "policy" else config.model
        self.info = ScorerInfo(
            name=f"judge {name} at {config.endpoint}",
            version=f"judge-{_fingerprint(config, weights, self._reader.tokenizer_digest)}",
            tokenizer_digest=self._reader.tokenizer_digest,
            max_sequence_tokens=0,
        )

    def prepare(self, item: Item) -> TextPair | ScoreError:
        """Returns the item as text."""
        return self._reader.read(item)

    def size_of(self, prepared: TextPair) -> int:
        """Returns about the length in tokens, without that of the rubric."""
        return 1 + (len(prepared.prompt) + len(prepared.completion)) // 4

    def score(self, batch: list[TextPair]) -> list[float | ScoreError]:
        """Returns for each pair the judge's probability that its completion is good. Raises: ScorerError."""
        return self._ask([pointwise_question(self._config.rubric, pair) for pair in batch])

    def compare(self, batch: list[tuple[TextPair, TextPair]]) -> list[float | ScoreError]:
        """Returns for each pair the probability that the first is the better one, asked in both orders.

        A judge prefers the place as well as the answer: the mean of both orders takes that out. Raises: ScorerError.
        """
        questions = [_questions(self._config.rubric, *pair) for pair in batch]
        answers = iter(self._ask([question for both in questions if both is not None for question in both]))
        return [_OTHER_PROMPT if both is None else _mean_of_orders(next(answers), next(answers)) for both in questions]

    def close(self) -> None:
        """Ends connections, loop and thread."""
        self._thread.run(self._backend.close())
        self._thread.close()

    def _ask(self, questions: Sequence[Question]) -> list[float | ScoreError]:
        answers = self._thread.run(self._backend.ask(questions)) if questions else []
        return [
            answer
            if isinstance(answer, ScoreError)
            else probability_of_first(
                answer,
                question,
                min_answer_probability=self._config.min_answer_probability,
                max_uncertainty=self._config.max_uncertainty,
            )
            for question, answer in zip(questions, answers, strict=True)
        ]


_OTHER_PROMPT = ScoreError(
    ErrorCode.INVALID_ITEM,
    "first and second have different prompts; a judge compares two completions of one prompt",
)


def build_judge_scorer(config: JudgeConfig, decoder: Decoder | None) -> JudgeScorer:
    """Returns the scorer. Raises: ConfigError. Libraries are imported only for the backend that needs them."""
    if config.backend == "policy":
        from services.reward.scorers.judge.policy import PolicyBackend

        return JudgeScorer(config, PolicyBackend(config), decoder)
    from services.reward.scorers.judge.openai import OpenAiBackend

    return JudgeScorer(config, OpenAiBackend(config), decoder)


class JudgeScorerConfig(TextScorerSection):
    """A judge that gives the rewards."""

    kind: Literal["judge"]
    waits: ClassVar[bool] = True
    judge: JudgeConfig = JudgeConfig()
    """judge: which language model is asked, and how."""

    @field_validator("judge")
    @classmethod
    def _require_judge(cls, value: JudgeConfig) -> JudgeConfig:
        value.require_complete()
        return value

    def build(self) -> JudgeScorer:
        """Connects to the judge. Raises: ConfigError."""
        return build_judge_scorer(self.judge, self.decoder())


def _questions(rubric: str, first: TextPair, second: TextPair) -> tuple[Question, Question] | None:
    if first.prompt != second.prompt:
        return None
    return pairwise_question(rubric, first, second), pairwise_question(rubric, second, first)


def _mean_of_orders(as_first: float | ScoreError, as_second: float | ScoreError) -> float | ScoreError:
    """Returns the mean of the probability of A, and of B with the places changed."""
    if isinstance(as_first, ScoreError):
        return as_first
    if isinstance(as_second, ScoreError):
        return as_second
    return (as_first + 1.0 - as_second) / 2


def _fingerprint(config: JudgeConfig, weights: str, tokenizer_digest: str) -> str:
    """Returns the digest of all that the rewards depend on and that can be known."""
    fields = ("backend", "endpoint", "model", "rubric", "top_logprobs", "samples", "version")
    values = {field: getattr(config, field) for field in fields}
    parts = (json.dumps(values, sort_keys=True), TEMPLATES, weights, tokenizer_digest)
    return blake3(repr(parts).encode()).hexdigest()[:16]
