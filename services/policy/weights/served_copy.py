"""The copy of the served weights that patches apply to, and whether a push fits the model that is served."""

from typing import TYPE_CHECKING

from rlhf.errors import InvalidRequestError, PreconditionError
from rlhf.weights import PushHeader, WeightsManifest
from services.policy.weights.full import FullPayload
from services.policy.weights.memory_file import WeightsFile

if TYPE_CHECKING:
    from services.policy.weights.patch import PatchPayload


def check_manifest(pushed: WeightsManifest, served: WeightsManifest, weights_digest: str) -> None:
    """Checks that a push would bring exactly the tensors that the engine serves.

    Args:
        pushed: what the header announces; the order of its tensors is free.
        served: what the engine loaded.
        weights_digest: of the whole, as the header says.
    Raises: InvalidRequestError naming the first tensor that is double, extra, missing, misshapen or of another dtype.
    """
    if len(pushed.by_name) != len(pushed.tensors):
        names = [info.name for info in pushed.tensors]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(f"tensors names '{twice}' twice; send each tensor once")
    for info in pushed.tensors:
        expected = served.by_name.get(info.name)
        if expected is None:
            raise InvalidRequestError(
                f"tensors has '{info.name}', which the served model does not have; name exactly the model's tensors, "
                "tied ones once"
            )
        if (info.shape, info.dtype) != (expected.shape, expected.dtype):
            raise InvalidRequestError(
                f"tensor '{info.name}' is {info.dtype} {list(info.shape)}; "
                f"the served model has {expected.dtype} {list(expected.shape)} there"
            )
    missing = [info.name for info in served.tensors if info.name not in pushed.by_name]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InvalidRequestError(f"tensors lacks '{missing[0]}'{others}; a full push names every tensor of the model")
    if pushed.digest != weights_digest:
        raise InvalidRequestError(
            f"weights_digest is '{weights_digest}', the header's tensors give '{pushed.digest}'; "
            "compute it as policy.proto says"
        )


class ServedCopy:
    """Keeps the served weights, and makes the payload of each push.

    Every push is begun, accepted unless it fails, and ended. A full push streams into a second file; once accepted the
    two change places, and the next full push finds memory that need not be mapped and cleared anew. A patch frees
    the second file: a run that sends patches holds the weights once.
    """

    def __init__(self, *, takes_patches: bool) -> None:
        """Args: takes_patches: whether to keep a copy at all."""
        self._keeps = takes_patches
        self._served: WeightsFile | None = None
        self._spare: WeightsFile | None = None
        self._accepted: FullPayload | PatchPayload | None = None

    @property
    def takes_patches(self) -> bool:
        """Whether there is a copy that a patch could apply to."""
        return self._served is not None

    def load(self, file: WeightsFile | None) -> None:
        """Takes over the copy that was made when the engine loaded; None if none was made."""
        self._served = file

    def begin(self, header: PushHeader) -> "FullPayload | PatchPayload":
        """Returns what takes the payload of a push whose header was checked.

        Raises: PreconditionError for a patch if there is no copy; InvalidRequestError if its parts are wrong.
        """
        if header.encoding != "sparse_patch":
            payload = FullPayload(header.manifest, self._spare)
            self._spare = None
            return payload
        if self._served is None:
            raise PreconditionError(
                "header.encoding is WEIGHTS_ENCODING_SPARSE_PATCH, which this server does not take "
                "(limits.takes_patches); send WEIGHTS_ENCODING_FULL"
            )
        # Imported here: it brings torch, which the engine has imported long before a patch can come.
        from services.policy.weights.patch import PatchPayload

        patch = PatchPayload(header, self._served)
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        return patch

    def accept(self, payload: "FullPayload | PatchPayload") -> None:
        """Takes note that the engine serves what the payload brought. It stays readable until the push ends."""
        self._accepted = payload
        if not isinstance(payload, FullPayload):
            payload.accept()
        elif self._keeps:
            self._spare, self._served = self._served, payload.file

    def end(self, payload: "FullPayload | PatchPayload") -> None:
        """Ends a push; what one that was not accepted has changed is taken back."""
        accepted, self._accepted = self._accepted is payload, None
        if not isinstance(payload, FullPayload):
            if not accepted:
                payload.undo()
            payload.close()
        elif not self._keeps:
            payload.file.close()
        elif not accepted:
            self._spare = payload.file

    def close(self) -> None:
        """Frees the memory."""
        for file in (self._served, self._spare):
            if file is not None:
                file.close()
        self._served = self._spare = None
