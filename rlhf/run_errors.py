"""Errors that end a run. The last complete checkpoint stays, and --resume goes on from it."""


class RunError(RuntimeError):
    """A run that cannot go on. The message says what failed, with its value, and what to do."""


class StoppedError(Exception):
    """A signal ended a training before its last step; a checkpoint was written, and --resume goes on from it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("a signal stopped the training after a checkpoint; go on with --resume")
        self.exit_code = exit_code
        """What the process should end with: 128 + the signal's number."""


class NonFiniteError(RunError):
    """A loss or a gradient is NaN or infinite; nothing was changed by it."""

    def __init__(self, quantity: str, value: float) -> None:
        super().__init__(
            f"{quantity} is {value}; the weights were left as they were. Lower the learning rate or max_grad_norm, and "
            "look at the rewards or examples of this step"
        )
