"""Configuration of the watch over rewards."""

from pydantic import Field

from rlhf.config import KIND, Section
from services.reward.scorers.config import ScorerConfig


class ThresholdsConfig(Section):
    """From where on the report warns. The alerts of deploy/monitoring have the same numbers, written there."""

    drift: float = Field(default=1.0, gt=0)
    """Population stability index: 0.25 is usually called a shift, 1 is about one standard deviation. A policy that
    learns moves its rewards on purpose."""
    length_correlation: float = Field(default=0.7, gt=0, le=1)
    """Rank correlation of reward and length, of either sign."""
    repetition: float = Field(default=0.2, gt=0, le=1)
    """Mean share of n-grams that repeat an earlier one of their completion."""
    spread: float = Field(default=1.0, gt=0)
    """Mean spread of an ensemble, in standard deviations of the training scores."""
    heldout_gap: float = Field(default=1.0, gt=0)
    """How much more the reward has risen than the held-out one, in standard deviations."""


class WatchConfig(Section):
    """What is looked at to see reward hacking early (docs/monitoring.md)."""

    baseline_items: int = Field(default=500, ge=20)
    """How many of a caller's first items the later ones are compared with."""
    window_items: int = Field(default=500, ge=20, le=10_000)
    """How many of a caller's newest items are looked at."""
    heldout: ScorerConfig | None = Field(default=None, discriminator=KIND)
    """A second scorer that no training sees, to compare with; none by default. Only in the TOML file."""
    heldout_fraction: float = Field(default=0.1, gt=0, le=1)
    """Share of the items that the held-out scorer is asked about."""
    heldout_items: int = Field(default=100, ge=20, le=10_000)
    """How many of these make its baseline, and its window."""
    thresholds: ThresholdsConfig = ThresholdsConfig()
