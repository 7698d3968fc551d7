"""How much a scoring service accepts, and the metrics of its batches: alike for reward and reference."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import Field, ValidationInfo, field_validator

from rlhf.config import Section
from rlhf.serving.calls import SECONDS_BUCKETS


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


_ITEM_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_RATIO_BUCKETS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)


class BatchMetrics:
    """Sizes, seconds and padding of the batches, and the queue before them."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        """Args: prefix: such as "rlhf_reward"; names become rlhf_reward_batch_items and so on."""
        self.batch_items = Histogram(
            f"{prefix}_batch_items", "Items of one batch.", buckets=_ITEM_BUCKETS, registry=registry
        )
        self.model_seconds = Histogram(
            f"{prefix}_model_seconds", "Time one batch spent in the model.", buckets=SECONDS_BUCKETS, registry=registry
        )
        self.padding_ratio = Histogram(
            f"{prefix}_padding_ratio",
            "Share of a batch that is padding: work that nobody asked for; 0 where the model needs none.",
            buckets=_RATIO_BUCKETS,
            registry=registry,
        )
        self.tokens = Counter(
            f"{prefix}_tokens_total", "Tokens put through the model, padding not counted.", registry=registry
        )
        self.queue_items = Gauge(f"{prefix}_queue_items", "Items that wait for a batch.", registry=registry)
        self.queue_limit_items = Gauge(
            f"{prefix}_queue_limit_items", "Most items that may wait; more are refused.", registry=registry
        )

    def watch_queue(self, num_waiting: Callable[[], int], limit: int) -> None:
        """Reads the queue's depth from a function from now on; `limit` is the most items that it may hold."""
        self.queue_items.set_function(num_waiting)
        self.queue_limit_items.set(limit)

    def observe(self, lengths: Sequence[int], seconds: float, pads: bool = True) -> None:
        """Counts one batch: its items' lengths in tokens (at least one), its time in the model, and whether it was
        padded to the longest."""
        padded = len(lengths) * max(lengths) if pads else sum(lengths)
        self.batch_items.observe(len(lengths))
        self.model_seconds.observe(seconds)
        self.padding_ratio.observe(1 - sum(lengths) / padded if padded else 0.0)
        self.tokens.inc(sum(lengths))
