"""Receives a push of all weights, straight into the file that the engine will load."""

import time
from bisect import bisect_right
from itertools import accumulate

from blake3 import blake3

from rlhf.errors import InvalidRequestError
from rlhf.weights import WeightsManifest
from services.policy.weights.memory_file import WeightsFile
from services.policy.weights.staged import StagedWeights, check_digest, check_piece


class FullPayload:
    """Implements staged.Payload: every tensor is hashed as its bytes pass."""

    def __init__(self, manifest: WeightsManifest, file: WeightsFile | None = None) -> None:
        """Takes nothing yet.

        Args:
            manifest: what the payload must turn out to be; checked against the engine's already (check_manifest).
            file: where to put it; memory that it has already is fast. None makes one.
        """
        self.received = 0
        self.verify_seconds = 0.0
        self.file = file or WeightsFile()
        self.file.arrange(manifest)
        self._manifest = manifest
        self._starts = tuple(accumulate((info.num_bytes for info in manifest.tensors), initial=0))
        self._tensor = 0
        self._hasher = blake3()

    def write(self, offset_bytes: int, data: bytes | memoryview) -> None:
        """Takes the next piece; see Payload.write."""
        check_piece(offset_bytes, len(data), self.received, self._manifest.num_bytes)
        piece = memoryview(data)
        while piece:
            piece = piece[self._write_to_tensor(piece) :]

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Returns a part of the payload; see Payload.read."""
        parts = []
        while num_bytes:
            tensor = bisect_right(self._starts, offset_bytes) - 1
            size = min(num_bytes, self._starts[tensor + 1] - offset_bytes)
            parts.append(self.file.read(self.file.offsets[tensor] + offset_bytes - self._starts[tensor], size))
            offset_bytes, num_bytes = offset_bytes + size, num_bytes - size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def commit(self, policy_version: int) -> StagedWeights:
        """Returns the weights. Raises InvalidRequestError if bytes are missing."""
        self._complete_tensors()
        if self.received != self._manifest.num_bytes:
            raise InvalidRequestError(
                f"the commit came after {self.received} of {self._manifest.num_bytes} bytes, inside tensor "
                f"'{self._manifest.tensors[self._tensor].name}'; send the whole payload first"
            )
        return self.file.staged(policy_version)

    def _write_to_tensor(self, piece: memoryview) -> int:
        """Writes what of the piece belongs to the present tensor; returns how many bytes that was."""
        self._complete_tensors()
        part = piece[: self._starts[self._tensor + 1] - self.received]
        self.file.put(self.file.offsets[self._tensor] + self.received - self._starts[self._tensor], part)
        started = time.perf_counter()
        self._hasher.update(part)
        self.verify_seconds += time.perf_counter() - started
        self.received += len(part)
        self._complete_tensors()
        return len(part)

    def _complete_tensors(self) -> None:
        """Checks the tensors that are whole by now; empty ones need no bytes for it."""
        while self._tensor < len(self._manifest.tensors) and self.received == self._starts[self._tensor + 1]:
            check_digest(self._manifest.tensors[self._tensor], self._hasher.hexdigest())
            self._tensor += 1
            self._hasher = blake3()
