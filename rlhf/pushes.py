"""What a weight push announces, and what becomes of it: the types of both its ends."""

from dataclasses import dataclass
from typing import Literal

from rlhf.weights import WeightsManifest

Encoding = Literal["full", "sparse_patch", "unspecified"]
"""How the payload encodes the weights, as policy.proto's WeightsEncoding."""


@dataclass(frozen=True, slots=True)
class PatchPart:
    """What of a patch belongs to one tensor."""

    changed_count: int
    """Elements whose bits changed."""
    num_bytes: int
    """Of its zstd frame; 0 if nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushHeader:
    """What a push announces; the fields are those of WeightsHeader."""

    policy_version: int
    manifest: WeightsManifest
    """The weights as they are after the push."""
    weights_digest: str
    encoding: Encoding = "full"
    base_policy_version: int = 0
    base_weights_digest: str = ""
    parts: tuple[PatchPart, ...] = ()
    """Of a patch: one for each tensor of the manifest."""
    forward_targets: tuple[str, ...] = ()
    """Replicas that get the push from the one that gets it here, as a chain."""

    @classmethod
    def full(cls, policy_version: int, manifest: WeightsManifest) -> "PushHeader":
        """Returns what announces all weights."""
        return cls(policy_version=policy_version, manifest=manifest, weights_digest=manifest.digest)

    @property
    def payload_bytes(self) -> int:
        """Size of all chunks together."""
        if self.encoding == "sparse_patch":
            return sum(part.num_bytes for part in self.parts)
        return self.manifest.num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedPush:
    """What became of a push at a replica that got it from another one."""

    target: str
    error: str = ""
    """Why it does not serve the weights; empty if it does."""
    policy_version: int = 0
    weights_digest: str = ""
    pause_seconds: float = 0.0
    stage_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """A push that took effect."""

    policy_version: int
    weights_digest: str
    pause_seconds: float
    """How long no token was sampled; 0 if the replica had the weights already."""
    stage_seconds: float = 0.0
    """From the header until the weights were whole and verified."""
    forwarded: tuple[ForwardedPush, ...] = ()
