"""Prompts, sampling parameters and rollouts as plain types, and checks of token ids that callers send.

rlhf/client/codec.py converts the types to messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt to sample completions for."""

    group_id: str
    """Shared by all rollouts of this prompt."""
    prompt_ids: list[int]
    """Token ids after the chat template, without padding."""
    seed: int | None = None
    """Completion i is sampled with seed + i; None samples without a fixed seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample completions: from the whole softmax at `temperature`, without top-p or top-k."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    completions_per_prompt: int = 1
    stop_ids: tuple[int, ...] = ()
    """Ids that end a completion; empty uses the model's."""


def expected_ids(prompt: Prompt, sampling: Sampling) -> list[str]:
    """Returns the rollout_ids of a prompt's completions, before they are sampled."""
    return [f"{prompt.group_id}/{index}" for index in range(sampling.completions_per_prompt)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion. Per-token lists cover completion_ids only and share its length T >= 1."""

    rollout_id: str
    """Unique in a request: group_id, a slash, and the index among the prompt's completions."""
    group_id: str
    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    """Nats under the distribution that was sampled from, as reported by the policy service."""
    policy_versions: list[int]
    """The version of the weights that sampled each token."""
    finish_reason: FinishReason

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)


def fault_of_ids(field: str, ids: Sequence[int], vocab_size: int) -> str | None:
    """Says what is wrong with a list of token ids and the remedy; None if it has some and all are known."""
    if not ids:
        return f"{field} is empty; send at least one token id"
    if min(ids) < 0 or max(ids) >= vocab_size:
        index = next(index for index, token in enumerate(ids) if not 0 <= token < vocab_size)
        return (
            f"{field}[{index}] is {ids[index]}, outside the vocabulary of {vocab_size}; "
            f"send ids from 0 to {vocab_size - 1} made by this service's tokenizer"
        )
    return None


def fault_of_digest(given: str, served: str) -> str | None:
    """Says that a request's tokenizer is not the one served, or returns None. An empty digest is not checked."""
    if not given or given == served:
        return None
    served_text = f"'{served}'" if served else "none (no tokenizer is configured)"
    return (
        f"tokenizer_digest is '{given}', this service has {served_text}; "
        "make the ids with the served model's tokenizer, or point the service at a model that shares yours"
    )
