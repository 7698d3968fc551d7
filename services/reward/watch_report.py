"""What the watch says of one caller of one model version."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The rewards that one version gave one caller; fields as in the proto's RewardReport."""

    model_version: str
    caller: str
    item_count: int
    window_item_count: int
    baseline_item_count: int
    baseline_mean: float | None
    reward_mean: float
    reward_std: float
    reward_quantiles: tuple[float, float, float]
    drift: float | None
    length_correlation: float | None
    repetition_mean: float | None
    spread_mean: float | None
    heldout_gap: float | None
    heldout_correlation: float | None
    warnings: tuple[str, ...] = ()
