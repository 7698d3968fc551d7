"""The panels of the dashboard Reward that come from the service's own watch over each caller's rewards."""

from deploy.monitoring.board import Panels
from deploy.monitoring.panels import time_series

NAME = "{{caller}} {{model_version}}"
"""Series of a caller and a model version; replicas are put together."""


def watch_panels(here: str) -> Panels:
    """Returns two rows. Args: here: matches the chosen service."""
    return [*_shape(here), *_suspicion(here)]


def _by_caller(metric: str, here: str, aggregation: str = "max") -> str:
    return f"{aggregation} by (model_version, caller) (rlhf_reward_watch_{metric}{{{here}}})"


def _shape(here: str) -> Panels:
    return [
        time_series(
            "Mean reward of each caller",
            "Over the caller's newest rewards from each model version.",
            "none",
            (_by_caller("mean", here, "avg"), NAME),
        ),
        time_series(
            "Drift of each caller's rewards",
            "Population stability index of the newest rewards against the caller's first ones: 0.25 is a shift, 1 "
            "about a standard deviation. A policy that learns drifts; another caller should not.",
            "none",
            (_by_caller("drift", here), NAME),
            low=0,
            steps=((None, "green"), (1, "orange")),
        ),
        time_series(
            "Reward against length of each caller",
            "Rank correlation over the newest rewards. Near 1, writing more is all that pays.",
            "none",
            (_by_caller("length_correlation", here, "avg"), NAME),
            low=-1,
            high=1,
            steps=((None, "orange"), (-0.7, "green"), (0.7, "orange")),
        ),
    ]


def _suspicion(here: str) -> Panels:
    return [
        time_series(
            "Repetition",
            "Mean share of a completion's three-word (or three-token) sequences that it had before. Growing: the "
            "policy is paid for loops.",
            "percentunit",
            (_by_caller("repetition_mean", here), NAME),
            low=0,
            steps=((None, "green"), (0.2, "orange")),
        ),
        time_series(
            "Disagreement of each caller",
            "Mean spread of the ensemble. Growing: the completions leave what the reward models were trained on.",
            "none",
            (_by_caller("spread_mean", here), NAME),
            low=0,
            steps=((None, "green"), (1, "orange")),
        ),
        time_series(
            "Reward ahead of the held-out one",
            "Gap: how much more the reward has risen than the held-out scorer's, in standard deviations of the first "
            "ones; growing is over-optimisation. Rank correlation of the two: falling is a warning before it.",
            "none",
            (_by_caller("heldout_gap", here), f"{NAME} gap"),
            (_by_caller("heldout_correlation", here, "min"), f"{NAME} rank correlation"),
            steps=((None, "green"), (1, "orange")),
        ),
    ]
