"""The JSON of the routes about what is served: the model, other weights for it, and how its rewards develop."""

from typing import Annotated

from pydantic import ConfigDict, FailFast

from services.reward.dialects.native_models import Message


class Model(Message):
    """What is served, and its limits."""

    model_name: str
    model_version: str
    tokenizer_digest: str
    max_sequence_tokens: int
    """Most tokens of prompt and completion together; 0: no limit."""
    max_items: int
    """Most items in one call."""
    max_text_characters: int
    """Most characters of one item that is sent as text."""
    logit_scale: float
    """What a difference of rewards is multiplied by to be one of logits."""


class RewardReport(Message):
    """The rewards that one version gave one caller. What is over the window is over its newest items."""

    model_version: str
    caller: str
    item_count: int
    """Rewards given in all."""
    window_item_count: int
    baseline_item_count: int
    """The first items of this caller and version, which the window is compared with."""
    baseline_mean: float | None
    """Null while the baseline is not complete."""
    reward_mean: float
    reward_std: float
    reward_quantiles: tuple[float, float, float]
    """A tenth, half and nine tenths of the window's rewards lie below these."""
    drift: float | None
    """Population stability index of window and baseline; above 0.25 is usually called a shift."""
    length_correlation: float | None
    """Rank correlation of reward and length."""
    repetition_mean: float | None
    """Mean share of n-grams that repeat an earlier one of their completion."""
    spread_mean: float | None
    heldout_gap: float | None
    """How much more the reward has risen than the held-out scorer's, in standard deviations."""
    heldout_correlation: float | None
    warnings: tuple[str, ...]
    """What looks wrong, in sentences."""


class ReportAnswer(Message):
    """One report for each model version and caller, newest version first."""

    reports: list[RewardReport]


class LoadModelBody(Message):
    """Other weights to serve."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_paths": ["/models/reward-2"]}]})

    request_id: str = ""
    model_paths: Annotated[list[str], FailFast()]
    """Folders on the server, below one of its models.allowed_roots: one for a model, one a member for an ensemble."""
    component: str = ""
    """Which part of a weighted sum gets them."""


class LoadModelAnswer(Message):
    """The swap is done."""

    model_version: str
    previous_model_version: str
    load_seconds: float
