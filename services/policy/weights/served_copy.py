"""The copy of the served weights that patches apply to, beside the engine, and the memory that full pushes reuse."""

from typing import TYPE_CHECKING

from rlhf.errors import PreconditionError
from rlhf.pushes import PushHeader
from services.policy.weights.full import FullStage
from services.policy.weights.memory_file import WeightsFile

if TYPE_CHECKING:
    from services.policy.weights.patch import PatchStage


class ServedCopy:
    """Keeps the served weights, and makes the stage of each push.

    Every push is begun, accepted unless it fails, and ended. A full push streams into a second file; once accepted the
    two change places, and the next full push finds memory that need not be mapped and cleared anew. A patch frees
    the second file: a run that sends patches holds the weights once.
    """

    def __init__(self, *, takes_patches: bool) -> None:
        """Args: takes_patches: whether to keep a copy at all."""
        self._keeps = takes_patches
        self._served: WeightsFile | None = None
        self._spare: WeightsFile | None = None
        self._accepted: FullStage | PatchStage | None = None

    @property
    def takes_patches(self) -> bool:
        """Whether there is a copy that a patch could apply to."""
        return self._served is not None

    def load(self, file: WeightsFile | None) -> None:
        """Takes over the copy that was made when the engine loaded; None if none was made."""
        self._served = file

    def begin(self, header: PushHeader) -> "FullStage | PatchStage":
        """Returns the stage of a push whose header was checked.

        Raises: PreconditionError for a patch if there is no copy; InvalidRequestError if its parts are wrong.
        """
        if header.encoding != "sparse_patch":
            stage = FullStage(header.manifest, self._spare)
            self._spare = None
            return stage
        if self._served is None:
            raise PreconditionError(
                "header.encoding is WEIGHTS_ENCODING_SPARSE_PATCH, which this server does not take "
                "(limits.takes_patches); send WEIGHTS_ENCODING_FULL"
            )
        # Imported here: it brings torch, which the engine has imported long before a patch can come.
        from services.policy.weights.patch import PatchStage

        patch = PatchStage(header, self._served)
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        return patch

    def accept(self, stage: "FullStage | PatchStage") -> None:
        """Takes note that the engine serves what the stage brought. The payload stays readable until the push ends."""
        self._accepted = stage
        if not isinstance(stage, FullStage):
            stage.accept()
        elif self._keeps:
            self._spare, self._served = self._served, stage.file

    def end(self, stage: "FullStage | PatchStage") -> None:
        """Ends a push; what one that was not accepted has changed is taken back."""
        accepted, self._accepted = self._accepted is stage, None
        if not isinstance(stage, FullStage):
            if not accepted:
                stage.undo()
            stage.close()
        elif not self._keeps:
            stage.file.close()
        elif not accepted:
            self._spare = stage.file

    def close(self) -> None:
        """Frees the memory."""
        for file in (self._served, self._spare):
            if file is not None:
                file.close()
        self._served = self._spare = None
