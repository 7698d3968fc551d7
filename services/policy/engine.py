"""What the policy service asks of whatever samples: the Engine protocol, and the types that cross it."""

from dataclasses import dataclass
from typing import Protocol

from rlhf.rollout import FinishReason
from rlhf.weights import WeightsManifest
from services.policy.weights.memory_file import WeightsFile
from services.policy.weights.staged import StagedPatch, StagedWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine has loaded, and its limits."""

    name: str
    """"vllm" or "transformers"."""
    tokenizer_digest: str
    vocab_size: int
    """Ids from 0 to vocab_size - 1 are known."""
    max_sequence_tokens: int
    """Most tokens of prompt and completion together."""
    stop_ids: tuple[int, ...]
    """The model's own end-of-sequence ids."""
    dtype: str
    """Of the served weights, named as in a manifest."""
    manifest: WeightsManifest
    """The weights as loaded at start: the names, types and shapes that a push must bring."""
    copy: WeightsFile | None = None
    """Those weights in memory, for patches to apply to; None if limits.takes_patches is off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleParams:
    """How to sample one completion."""

    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    stop_ids: tuple[int, ...]
    """The ids that end it; no others do."""
    seed: int | None
    """In [0, 2^63); None draws unpredictably."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled completion; the lists share their length T >= 1, and are those of rollout.Rollout."""

    completion_ids: list[int]
    logprobs: list[float]
    policy_versions: list[int]
    finish_reason: FinishReason


class Engine(Protocol):
    """Samples token ids from token ids, and changes weights between two tokens. All methods run in one event loop."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded. Only after start()."""

    async def start(self) -> None:
        """Loads the model as version 0. Raises: ConfigError if it cannot be served so; FatalError if loading fails."""

    async def generate(self, prompt_ids: list[int], params: SampleParams, request_id: str) -> Completion:
        """Returns one completion of a prompt that the engine's info allows.

        Cancelling frees what the engine holds for it. `request_id` is unique among the requests in flight.
        Raises: NotReadyError as soon as the engine cannot go on; its message says what happens next.
        """

    async def update_weights(self, staged: StagedWeights | StagedPatch) -> float:
        """Swaps the weights, keeping the requests in flight, and returns how many seconds no token was sampled.

        A patch applies to the weights that the engine has; one that fails is mended with the whole weights in it.

        Tokens sampled before carry the old version, those after the new one and nothing computed with old weights.
        Must not be cancelled. Raises: NotReadyError if nothing was changed; FatalError if the weights may be half
        applied: such an engine never samples again.
        """

    async def check(self) -> None:
        """Returns at once if the engine can sample. Raises: NotReadyError if not now, FatalError if never again."""

    async def close(self) -> None:
        """Frees everything; requests in flight fail."""
