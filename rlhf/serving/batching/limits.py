"""How much a scoring service accepts: the section that reward and reference configure alike."""

from pydantic import Field, ValidationInfo, field_validator

from rlhf.config import Section


class BatchLimitsConfig(Section):
    """How much is accepted, and how it is batched."""

    max_items: int = Field(default=1024, ge=1)
    """Most items in one call."""
    max_queue_items: int = Field(default=8192, ge=1)
    """Most items that wait; what comes past it is refused at once. At least max_items. One part in eight is kept for
    callers of which nothing waits."""
    max_queue_seconds: float = Field(default=0.0, ge=0)
    """What would wait longer than this, as estimated from the tokens that go before it, is refused at once; 0: no such
    bound. It does not count the batch that runs."""
    max_batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens of one forward pass, padding included; a longer sequence goes alone."""
    batch_wait_ms: float = Field(default=2.0, ge=0)
    """How long an idle model lets the first item wait for others to share its batch; 0: not at all."""
    stuck_after_seconds: float = Field(default=120.0, gt=0)
    """A batch that takes longer turns readiness off until it ends."""

    @field_validator("max_queue_items")
    @classmethod
    def _hold_a_call(cls, value: int, info: ValidationInfo) -> int:
        max_items = info.data.get("max_items", 0)
        if value < max_items:
            raise ValueError(f"a call of limits.max_items = {max_items} would never fit; make it at least that")
        return value
