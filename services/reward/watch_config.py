"""Configuration of the watch over rewards."""

from pydantic import Field

from rlhf_services.common.config import Section
from rlhf_services.reward.scorer_config import ScorerConfig


class WatchConfig(Section):
    """What is looked at to see reward hacking early."""

    baseline_items: int = Field(default=500, ge=1)
    """How many of a caller's first items the later ones are compared with."""
    window_items: int = Field(default=500, ge=1)
    """How many of a caller's newest items are looked at."""
    heldout: ScorerConfig | None = None
    """A second scorer that no training sees, to compare with; none by default."""
    heldout_fraction: float = Field(default=0.1, gt=0, le=1)
    """Share of the items that the held-out scorer is asked about."""
