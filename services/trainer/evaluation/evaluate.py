"""How good a served policy is: completions of held-out prompts, scored, with means and 95 % intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf.data.prompts import PromptItem
from rlhf.learning.sample import Sample
from rlhf.models.loading import tokenizer_digest
from rlhf.rollout import Prompt, Sampling
from rlhf.statistics import MeanWithInterval, clustered_mean, distinct_2, repeated_ngrams
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.peers import Peers
from services.trainer.rollouts.collect import collect


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """One completion."""

    prompt_index: int
    """Of the prompt among those given."""
    prompt: str
    completion: str
    rewards: dict[str, float]
    """By the name of the reward service."""
    kl: float
    """Sum over its tokens of log policy - log reference, in nats: the k1 estimate of the completion's KL."""
    num_tokens: int
    """Tokens of the completion."""
    is_stopped: bool
    """Whether it ended by itself, not at the limit of tokens."""
    distinct_2: float | None
    """Different pairs of neighbouring words, as a share of all its pairs; None with fewer than two words."""
    repeated_ngrams: float | None
    """Share of its word 4-grams that stood in it before; None with fewer than four words."""

    @property
    def values(self) -> dict[str, float]:
        """Returns what is averaged, by name: "reward/<name>", "kl", "num_tokens", "stopped", "distinct_2", ..."""
        values = {f"reward/{name}": reward for name, reward in self.rewards.items()}
        values |= {"kl": self.kl, "num_tokens": float(self.num_tokens), "stopped": float(self.is_stopped)}
        optional = {"distinct_2": self.distinct_2, "repeated_ngrams": self.repeated_ngrams}
        return values | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The completions of all prompts and what they come to."""

    rows: list[EvaluationRow]
    summary: dict[str, MeanWithInterval]
    """By the names of EvaluationRow.values."""
    dropped: dict[str, int]
    """Completions without a usable number, by reason; in neither of the two above."""


async def evaluate(
    prompts: Sequence[PromptItem],
    peers: Peers,
    decode: Callable[[list[int]], str],
    *,
    samples_per_prompt: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    seed: int = 0,
) -> Evaluation:
    """Returns scored completions of every prompt by the policy as it is served now.

    Args:
        prompts: as load_prompts reads them.
        peers: the policy, reference and reward services (any number, by name); they are checked first.
        decode: turns completion ids into text, without special tokens.
        samples_per_prompt, max_new_tokens, temperature, stop_ids: how to sample; 0 is greedy, with one sample a prompt.
        seed: equal seeds draw equal completions from equal weights, up to the rounding of batches.
    Raises: ConfigError if a tokenizer differs; ServiceError if a service stays away; RunError if no completion can be
        used.
    """
    await peers.check()
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        completions_per_prompt=samples_per_prompt,
        stop_ids=stop_ids,
    )
    collected = await collect(questions_of(prompts, seed), sampling, peers)
    collected.require_enough(1.0)
    rows = rows_of(collected.samples, prompts, decode)
    return Evaluation(rows=rows, summary=summarise(rows), dropped=dict(collected.dropped))


def questions_of(prompts: Sequence[PromptItem], seed: int) -> list[Prompt]:
    """Returns the prompts as they are asked; the group_id of each is its number."""
    # Seeds of neighbours are far apart: completion i of a prompt is drawn with its seed + i.
    return [
        Prompt(group_id=str(index), prompt_ids=item.prompt_ids, seed=(seed * len(prompts) + index) * 1024)
        for index, item in enumerate(prompts)
    ]


def rows_of(
    samples: Sequence[Sample], prompts: Sequence[PromptItem], decode: Callable[[list[int]], str]
) -> list[EvaluationRow]:
    """Returns what the answers to questions_of(prompts) come to, in their order."""
    return [_row(sample, prompts, decode) for sample in samples]


def summarise(rows: Sequence[EvaluationRow]) -> dict[str, MeanWithInterval]:
    """Returns the mean of every value with its interval; completions of one prompt count as one draw of a prompt."""
    by_name: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.values.items():
            by_name.setdefault(name, []).append((row.prompt_index, value))
    return {
        name: clustered_mean([value for _, value in pairs], [index for index, _ in pairs])
        for name, pairs in by_name.items()
    }


def _row(sample: Sample, prompts: Sequence[PromptItem], decode: Callable[[list[int]], str]) -> EvaluationRow:
    rollout = sample.rollout
    index = int(rollout.group_id)
    completion = decode(rollout.completion_ids)
    return EvaluationRow(
        prompt_index=index,
        prompt=prompts[index].text,
        completion=completion,
        rewards=dict(sample.rewards),
        kl=math.fsum(rollout.logprobs) - math.fsum(sample.ref_logprobs),
        num_tokens=len(rollout.completion_ids),
        is_stopped=rollout.finish_reason == "stop",
        distinct_2=distinct_2(completion),
        repeated_ngrams=repeated_ngrams(completion),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How completions are sampled."""

    samples_per_prompt: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    """0 is greedy."""
    stop_ids: tuple[int, ...] = ()
    """Empty takes the model's own."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """What an evaluation measures with."""

    reference_target: str
    rewards: Mapping[str, str]
    """Targets of reward services, by name."""
    wait_for_services_seconds: float = 0.0
    """How long a service may be away."""


async def evaluate_served(
    policy_targets: Sequence[str],
    judges: Judges,
    items: Sequence[PromptItem],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    *,
    report: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Returns how the policy that is served at the targets, replicas of one another, does on the prompts.

    Raises: ConfigError if a service has another tokenizer; ServiceError if one stays away; RunError if no completion
        can be used.
    """
    config = ServicesConfig(
        policy_targets=list(policy_targets),
        reference_target=judges.reference_target,
        wait_for_services_seconds=judges.wait_for_services_seconds,
    )
    digest = tokenizer_digest(tokenizer)
    async with Peers(config, tokenizer_digest=digest, report=report, reward_targets=judges.rewards) as peers:
        return await evaluate(
            items,
            peers,
            lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
            samples_per_prompt=settings.samples_per_prompt,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            stop_ids=settings.stop_ids,
            seed=settings.seed,
        )
