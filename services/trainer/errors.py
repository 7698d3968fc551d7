"""Errors that end a run. The last complete checkpoint stays, and --resume goes on from it."""


class RunError(RuntimeError):
    """A run that cannot go on. The message says what failed, with its value, and what to do."""


class NonFiniteError(RunError):
    """A loss or a gradient is NaN or infinite; nothing was changed by it."""

    def __init__(self, quantity: str, value: float) -> None:
        super().__init__(
            f"{quantity} is {value}; the weights were left as they were. Lower the learning rate or max_grad_norm, and "
            "look at the rewards or examples of this step"
        )
