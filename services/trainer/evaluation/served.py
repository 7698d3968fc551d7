"""Evaluates policies that are served, all on the same prompts with the same seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf.data.prompts import PromptItem
from rlhf.models.loading import tokenizer_digest
from services.trainer.config.sections import ServicesConfig
from services.trainer.evaluation.evaluate import Evaluation, evaluate
from services.trainer.fleet.peers import Peers


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
