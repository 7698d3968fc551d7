"""How good a served policy is: completions of held-out prompts, scored, with means and 95 % intervals.

A checkpoint can be pushed to a policy service first: seconds, where starting another service takes a minute.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf.client.policy import PolicyClient
from rlhf.data.prompts import PromptItem
from rlhf.errors import ConfigError
from rlhf.learning.sample import Sample
from rlhf.models.loading import DtypeName, load_policy, tokenizer_digest
from rlhf.models.weights import checkpoint_tensors, model_manifest, tensor_bytes
from rlhf.rollout import Prompt, Sampling
from rlhf.statistics import MeanWithInterval, clustered_mean, distinct_2, repeated_ngrams
from rlhf.weights import PushHeader
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How completions are sampled."""

    samples_per_prompt: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    """0 is greedy, with one sample a prompt."""
    stop_ids: tuple[int, ...] = ()
    """Empty takes the model's own."""
    seed: int = 0
    """Equal seeds draw equal completions from equal weights, up to the rounding of batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """What an evaluation measures with."""

    reference_target: str
    rewards: Mapping[str, str]
    """Targets of reward services, by name."""
    wait_for_services_seconds: float = 0.0
    """How long a service may be away."""


async def evaluate(
    prompts: Sequence[PromptItem],
    peers: Peers,
    decode: Callable[[list[int]], str],
    settings: EvaluationSettings,
) -> Evaluation:
    """Returns scored completions of every prompt by the policy as it is served now.

    Args:
        prompts: as load_prompts reads them.
        peers: the policy, reference and reward services (any number, by name); they are checked first.
        decode: turns completion ids into text, without special tokens.
        settings: how to sample.
    Raises: ConfigError if a tokenizer differs; ServiceError if a service stays away; RunError if no completion can be
        used.
    """
    await peers.check()
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        completions_per_prompt=settings.samples_per_prompt,
        stop_ids=settings.stop_ids,
    )
    collected = await collect(questions_of(prompts, settings.seed), sampling, peers)
    collected.require_enough(1.0)
    rows = rows_of(collected.samples, prompts, decode)
    return Evaluation(rows=rows, summary=summarise(rows), dropped=dict(collected.dropped))


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
        return await evaluate(items, peers, lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)), settings)


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


DTYPES: dict[str, DtypeName] = {"BF16": "bfloat16", "F32": "float32"}
"""By the name that a policy service reports."""


async def push_checkpoint(target: str, checkpoint: Path, *, deadline_seconds: float = 600.0) -> None:
    """Pushes a checkpoint's weights to the policy service at the target, unless it serves exactly these already.

    Raises: ConfigError if its element type is not one that can be loaded; ServiceError if the checkpoint is of another
        model, or the service is away.
    """
    async with PolicyClient(target) as policy:
        served = await policy.get_model()
        if served.dtype not in DTYPES:
            raise ConfigError(
                f"the policy service at {target} serves {served.dtype}; start it with bfloat16 or float32"
            )
        model = load_policy(checkpoint, dtype=DTYPES[served.dtype])
        manifest = model_manifest(model)
        if manifest.digest == served.weights_digest:
            return

        def payload() -> Iterator[memoryview]:
            for _, tensor in checkpoint_tensors(model):
                yield tensor_bytes(tensor)

        version = served.policy_version + 1
        await policy.update_weights(PushHeader.full(version, manifest), payload(), deadline_seconds=deadline_seconds)
