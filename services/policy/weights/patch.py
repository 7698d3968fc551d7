"""Receives a patch: applies it to the copy of the served weights tensor by tensor, and can take it all back."""

import time
from dataclasses import replace
from itertools import accumulate

from torch import Tensor

from rlhf.errors import InvalidRequestError
from rlhf.models.sparse_patch import GAP_BYTES, decode, new_values
from rlhf.models.weights import tensor_bytes, view_tensor
from rlhf.weights import BYTES_PER_ELEMENT, PatchPart, PushHeader, TensorInfo, WeightsManifest, tensor_digest
from services.policy.weights.memory_file import MemoryFile, WeightsFile
from services.policy.weights.staged import PatchedTensor, StagedPatch, check_digest, check_piece


class PatchPayload:
    """Implements staged.Payload. Ends with accept() or undo(), then close()."""

    def __init__(self, header: PushHeader, served: WeightsFile) -> None:
        """Takes nothing yet.

        Args:
            header: of the push; its manifest and base are checked against the served weights already.
            served: the weights that the engine has; the patch is applied to them as it arrives.
        Raises: InvalidRequestError if the header contradicts itself, or the served weights.
        """
        check_parts(header, served.manifest)
        self.received = 0
        self.verify_seconds = 0.0
        self._header = header
        self._served = served
        self._offsets = {info.name: at for info, at in zip(served.manifest.tensors, served.offsets, strict=True)}
        self._memory = served.map()
        self._payload = bytearray()
        self._ends = tuple(accumulate(part.num_bytes for part in header.parts))
        self._next = 0
        self._patched: list[PatchedTensor] = []
        self._undo: list[tuple[Tensor, Tensor, Tensor]] = []
        self._file = MemoryFile()

    def write(self, offset_bytes: int, data: bytes | memoryview) -> None:
        """Takes the next piece, and applies the frames that are whole; see Payload.write."""
        check_piece(offset_bytes, len(data), self.received, self._header.payload_bytes)
        self._payload += data
        self.received += len(data)
        self._apply_whole_frames()

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Returns a part of the payload; see Payload.read."""
        return bytes(self._payload[offset_bytes : offset_bytes + num_bytes])

    def commit(self, policy_version: int) -> StagedPatch:
        """Returns the patch. Raises InvalidRequestError if bytes are missing."""
        self._apply_whole_frames()
        if self._next < len(self._ends):
            raise InvalidRequestError(
                f"the commit came after {self.received} of {self._header.payload_bytes} bytes, inside the patch of "
                f"tensor '{self._header.manifest.tensors[self._next].name}'; send the whole payload first"
            )
        whole = replace(self._served.staged(policy_version), manifest=self._manifest_after())
        return StagedPatch(
            policy_version=policy_version,
            path=self._file.path,
            num_bytes=self._file.num_bytes,
            tensors=tuple(self._patched),
            whole=whole,
        )

    @property
    def changed_fraction(self) -> float:
        """How many of the model's elements the patch changes."""
        num_elements = sum(info.num_bytes // BYTES_PER_ELEMENT[info.dtype] for info in self._header.manifest.tensors)
        return sum(part.changed_count for part in self._header.parts) / max(num_elements, 1)

    def accept(self) -> None:
        """Takes note that the engine serves what the copy holds now."""
        self._served.manifest = self._manifest_after()
        self._undo = []

    def undo(self) -> None:
        """Makes the copy what it was before the push."""
        for tensor, indices, old in reversed(self._undo):
            tensor[indices] = old
        self._undo = []

    def close(self) -> None:
        """Frees what the push needed beside the copy."""
        self._file.close()

    def _manifest_after(self) -> WeightsManifest:
        """Returns the manifest of what the push makes of the copy, in the copy's own order."""
        after = self._header.manifest.by_name
        return WeightsManifest(tuple(after[info.name] for info in self._served.manifest.tensors))

    def _apply_whole_frames(self) -> None:
        while self._next < len(self._ends) and self.received >= self._ends[self._next]:
            part = self._header.parts[self._next]
            if part.changed_count:
                end = self._ends[self._next]
                frame = bytes(self._payload[end - part.num_bytes : end])
                self._apply(self._header.manifest.tensors[self._next], part, frame)
            self._next += 1

    def _apply(self, info: TensorInfo, part: PatchPart, frame: bytes) -> None:
        """Applies one tensor's frame to the copy, verifies the tensor, and keeps the changes for the engine."""
        tensor = view_tensor(self._memory, info.dtype, info.shape, self._offsets[info.name])
        flat = tensor.view(-1)
        indices, steps = decode(part, frame, info.dtype, flat.numel(), name=info.name)
        old = flat[indices]
        values = new_values(old, steps)
        self._undo.append((flat, indices, old))
        flat[indices] = values
        started = time.perf_counter()
        check_digest(info, tensor_digest(tensor_bytes(tensor)))
        self.verify_seconds += time.perf_counter() - started
        self._patched.append(
            PatchedTensor(
                info=info,
                num_changed=part.changed_count,
                index_offset=self._file.append(tensor_bytes(indices)),
                value_offset=self._file.append(tensor_bytes(values)),
            )
        )


def check_parts(header: PushHeader, served: WeightsManifest) -> None:
    """Checks what a header says of a patch's parts. Raises: InvalidRequestError naming the first one that is wrong."""
    for info, part in zip(header.manifest.tensors, header.parts, strict=True):
        width = BYTES_PER_ELEMENT[info.dtype]
        numel = info.num_bytes // width
        most = _most_bytes(part.changed_count * (GAP_BYTES + width))
        if not 0 <= part.changed_count <= numel:
            wrong = f"a changed_count of {part.changed_count}; it has {numel} elements"
        elif not min(part.changed_count, 1) <= part.num_bytes <= most:
            wrong = f"{part.changed_count} changes in patch_bytes of {part.num_bytes}; that many take at most {most}"
        elif not part.changed_count and info.digest != served.by_name[info.name].digest:
            wrong = "a changed_count of 0, but another digest than in the base; send its changes, or all weights"
        else:
            continue
        raise InvalidRequestError(f"tensor '{info.name}' has {wrong}")


def _most_bytes(num_bytes: int) -> int:
    """Returns the size that zstd never exceeds for so many bytes, however little they can be compressed."""
    return num_bytes + num_bytes // 128 + 1024 if num_bytes else 0
