"""The weights as they are pushed: a copy on the host that never changes, and the patch from the one before."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from rlhf.learning.trained_model import TrainedModel
from rlhf.models.sparse_patch import MAX_ELEMENTS, TensorPatch, diff
from rlhf.models.weights import tensor_bytes, tensor_info
from rlhf.weights import Encoding, PatchPart, PushHeader, TensorInfo, WeightsManifest

MAX_THREADS = 8
"""That compare, copy and compress tensors side by side."""


@dataclass(frozen=True, slots=True)
class SparsePatch:
    """What turns one snapshot's weights into the next one's."""

    base_policy_version: int
    base_digest: str
    parts: tuple[PatchPart, ...]
    """One for each tensor of the manifest."""
    frames: tuple[bytes, ...]
    """Of the tensors that changed, in the manifest's order."""

    @property
    def num_bytes(self) -> int:
        """Size of its payload."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def num_changed(self) -> int:
        """How many elements changed."""
        return sum(part.changed_count for part in self.parts)


@dataclass(frozen=True)
class WeightsSnapshot:
    """One version of the weights: every tensor of the checkpoint once, tied ones under their first name.

    Persistent buffers are among them, as in a checkpoint; optimizer states and value heads are not. On ranks other than
    the main one there is the digest alone: manifest and tensors are empty.
    """

    policy_version: int
    manifest: WeightsManifest
    digest: str
    tensors: tuple[Tensor, ...]
    """In the manifest's order, contiguous, on the CPU. They never change; those that are as they were in the snapshot
    before share its memory."""
    patch: SparsePatch | None = None
    """From the snapshot before; None if there was none, patches are off, or the model's tensors are others now."""

    def header(self, encoding: Encoding) -> PushHeader:
        """Returns what announces a push. Raises ValueError for "sparse_patch" if there is no patch."""
        patch = self._patch() if encoding == "sparse_patch" else None
        return PushHeader(
            policy_version=self.policy_version,
            manifest=self.manifest,
            weights_digest=self.digest,
            encoding=encoding,
            base_policy_version=patch.base_policy_version if patch else 0,
            base_weights_digest=patch.base_digest if patch else "",
            parts=patch.parts if patch else (),
        )

    def payload(self, encoding: Encoding) -> Iterator[bytes | memoryview]:
        """Yields the bytes of a push, without a copy. Raises ValueError for "sparse_patch" if there is no patch."""
        if encoding == "sparse_patch":
            yield from self._patch().frames
        else:
            yield from map(tensor_bytes, self.tensors)

    @property
    def changed_fraction(self) -> float | None:
        """How many of the elements the patch changes; None without a patch."""
        if self.patch is None:
            return None
        return self.patch.num_changed / max(sum(tensor.numel() for tensor in self.tensors), 1)

    def cheaper_for(self, served: tuple[int, str] | None, *, takes_patches: bool) -> Encoding:
        """Returns how to bring these weights to a replica with the fewest bytes.

        Args:
            served: the policy_version and weights_digest it serves; None if that is not known.
            takes_patches: whether it does.
        """
        if not takes_patches or self.patch is None:
            return "full"
        fits = served == (self.patch.base_policy_version, self.patch.base_digest)
        return "sparse_patch" if fits and self.patch.num_bytes < self.manifest.num_bytes else "full"

    def _patch(self) -> SparsePatch:
        if self.patch is None:
            raise ValueError(f"version {self.policy_version} has no patch; push all weights")
        return self.patch


@dataclass(frozen=True, slots=True)
class _Taken:
    """One tensor of a snapshot."""

    info: TensorInfo
    tensor: Tensor
    patch: TensorPatch | None
    """Absent if there is nothing to compare it with."""


def take_snapshot(
    model: TrainedModel, policy_version: int, previous: WeightsSnapshot | None, *, patches: bool
) -> WeightsSnapshot:
    """Returns the model's present weights as a version. The model must not change meanwhile.

    Every rank must call it; the main one gets the tensors. Tensors that are as they were in `previous` are shared with
    it, and neither copied nor hashed again.

    Args:
        model: the policy in training.
        policy_version: what the weights are called from now on.
        previous: the last snapshot of the model, by the same process.
        patches: whether a patch from `previous` is wanted.
    Raises: ConfigError if a tensor is of a type that cannot be served.
    """
    before: dict[str, tuple[TensorInfo, Tensor]] = {}
    if previous is not None and patches:
        pairs = zip(previous.manifest.tensors, previous.tensors, strict=True)
        before = {info.name: (info, tensor) for info, tensor in pairs}
    # What weights() yields of a model on the CPU may be its own memory.
    copies = next(model.module.parameters()).is_cpu
    workers = min(os.cpu_count() or 1, MAX_THREADS)
    with ThreadPoolExecutor(workers, thread_name_prefix="snapshot") as pool:
        # The iteration gathers over all ranks and goes on to its end, whatever becomes of a tensor.
        futures = [
            pool.submit(_take, name, tensor, before.get(name), copies=copies)
            for name, tensor in model.weights()
            if model.ranks.is_main
        ]
        taken = [future.result() for future in futures]
    manifest = WeightsManifest(tuple(each.info for each in taken))
    digest = model.ranks.gather_bytes(manifest.digest.encode())[0].decode()
    tensors = tuple(each.tensor for each in taken)
    return WeightsSnapshot(policy_version, manifest, digest, tensors, _patch(previous, taken) if before else None)


def _take(name: str, tensor: Tensor, before: tuple[TensorInfo, Tensor] | None, *, copies: bool) -> _Taken:
    """Takes one tensor, given what it was in the snapshot before; `copies` if its memory may change later."""
    patch = None
    if before is not None and _can_be_patched(before[1], tensor):
        patch = diff(before[1], tensor)
        if not patch.changed_count:
            return _Taken(*before, patch)
    kept = tensor.clone() if copies else tensor
    return _Taken(tensor_info(name, kept), kept, patch)


def _can_be_patched(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and old.dtype == new.dtype and new.numel() <= MAX_ELEMENTS


def _patch(previous: WeightsSnapshot | None, taken: list[_Taken]) -> SparsePatch | None:
    """Returns the patch from the previous snapshot; None if the tensors are not the same ones."""
    patches = [each.patch for each in taken if each.patch is not None]
    if previous is None or not len(patches) == len(taken) == len(previous.tensors):
        return None
    return SparsePatch(
        base_policy_version=previous.policy_version,
        base_digest=previous.digest,
        parts=tuple(patch.part for patch in patches),
        frames=tuple(patch.frame for patch in patches if patch.changed_count),
    )
