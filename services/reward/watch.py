"""The watch over rewards: signs, by model version and caller, that a policy exploits its reward."""

from collections.abc import Callable, Sequence
from typing import Any

from rlhf_services.reward.metrics import RewardMetrics
from rlhf_services.reward.scorer import Observation, Scorer
from rlhf_services.reward.watch_config import WatchConfig
from rlhf_services.reward.watch_report import Report


class RewardWatch:
    """Keeps the first and the newest rewards of each caller and version, and compares them when asked."""

    def __init__(
        self, config: WatchConfig, metrics: RewardMetrics, heldout_scorer_factory: Callable[[], Scorer[Any]] | None
    ) -> None:
        """Args: heldout_scorer_factory: makes the held-out scorer, in its own thread; None: there is none."""
        metrics.watch.read_from(self.reports)

    def observe(
        self, model_version: str, caller: str, observations: Sequence[Observation], tokenizer_digest: str = ""
    ) -> None:
        """Takes note of the rewards of one call. Quick; never blocks or raises.

        Args: tokenizer_digest: of the scorer that gave them; token ids go to no held-out scorer of another one.
        """

    def reports(self) -> list[Report]:
        """What is known, newest version first. May be called in any thread; works out only what has changed."""
        return []

    def close(self) -> None:
        """Ends the held-out scorer's thread."""
