"""The watch over rewards: keeps those of each caller and model version, and reports them when asked.

In metrics there are no more names of callers than a Prometheus can bear.
"""

import random
import time
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any

from rlhf.client.reward_types import RewardReport
from rlhf.statistics import repetition_of
from services.reward.scorers.scorer import Observation, Scorer
from services.reward.watch.heldout import HeldoutScoring
from services.reward.watch.report import MAX_VERSIONS, WatchConfig, WatchGauges
from services.reward.watch.series import Point, RewardSeries

MAX_CALLERS = 32
IDLE_SECONDS = 3600.0
OTHER = "other"
UNKNOWN = "unknown"


class CallerLabels:
    """Lets so many callers keep their names, and gives the rest one together; callers name themselves as they like."""

    def __init__(
        self,
        on_forget: Callable[[str], None] = lambda name: None,
        *,
        max_callers: int = MAX_CALLERS,
        idle_seconds: float = IDLE_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: on_forget: told the name of a caller that has been idle so long that a new one gets its place."""
        self._on_forget = on_forget
        self._max_callers = max_callers
        self._idle_seconds = idle_seconds
        self._now = now
        self._last_seen: dict[str, float] = {}
        """The one that was seen last at the end."""

    def of(self, caller: str) -> str:
        """Returns the label of a caller; a nameless one is "unknown"."""
        name = caller or UNKNOWN
        now = self._now()
        if self._last_seen.pop(name, None) is None and len(self._last_seen) >= self._max_callers:
            idlest = next(iter(self._last_seen))
            if now - self._last_seen[idlest] < self._idle_seconds:
                return OTHER
            del self._last_seen[idlest]
            self._on_forget(idlest)
        self._last_seen[name] = now
        return name


REPETITION_UNITS = 512
"""Words or tokens of a completion's end in which repetition is looked for: loops come at the end."""
REPETITION_CHARACTERS = 8 * REPETITION_UNITS
QUIET_SECONDS = 1800.0
"""A caller that asked for nothing in so long is left out of the metrics: an alert on a run that is over must end."""
REPETITION_ITEMS = 16
"""Items of one call that are looked at so closely; it happens in the thread that answers all calls."""


class RewardWatch:
    """Keeps the first and the newest rewards of each caller and version, and compares them when asked."""

    def __init__(
        self,
        config: WatchConfig,
        gauges: WatchGauges,
        heldout_scorer_factory: Callable[[], Scorer[Any]] | None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: heldout_scorer_factory: makes the held-out scorer, in its own thread; None: there is none."""
        self._config = config
        self._now = now
        self._callers = CallerLabels(self._forget, now=now)
        self._random = random.Random()
        self._lock = Lock()
        self._versions: dict[str, dict[str, RewardSeries]] = {}
        self._heldout: HeldoutScoring | None = None
        if heldout_scorer_factory is not None:
            counter = gauges.heldout_items
            self._heldout = HeldoutScoring(heldout_scorer_factory, config.heldout_fraction, counter)
        gauges.read_from(self.recent_reports)

    def observe(
        self, model_version: str, caller: str, observations: Sequence[Observation], tokenizer_digest: str = ""
    ) -> None:
        """Takes note of the rewards of one call. Quick; never blocks or raises.

        Args: tokenizer_digest: of the scorer that gave them; token ids go to no held-out scorer of another one.
        """
        if not observations:
            return
        # By lot: every nth could be the same place of every group of completions.
        chosen = set(self._random.sample(range(len(observations)), min(len(observations), REPETITION_ITEMS)))
        series = self._series_of(model_version, self._callers.of(caller))
        series.seen_at = self._now()
        series.add([_point_of(each, closely=index in chosen) for index, each in enumerate(observations)])
        if self._heldout is not None:
            self._heldout.offer(series, observations, tokenizer_digest)

    def reports(self) -> list[RewardReport]:
        """What is known, newest version first. May be called in any thread; works out only what has changed.

        With many callers that takes a few hundred milliseconds: not for the thread of the event loop.
        """
        return _reports_of(self._all_series())

    def recent_reports(self) -> list[RewardReport]:
        """The same without the callers that have been quiet for long."""
        oldest = self._now() - QUIET_SECONDS
        return _reports_of([series for series in self._all_series() if series.seen_at > oldest])

    def close(self) -> None:
        """Ends the held-out scorer's thread."""
        if self._heldout is not None:
            self._heldout.close()

    def _all_series(self) -> list[RewardSeries]:
        """Returns the series, newest version first."""
        with self._lock:
            return [each for version in reversed(self._versions.values()) for each in version.values()]

    def _forget(self, caller: str) -> None:
        """Lets go of a caller that a new one has taken the place of."""
        with self._lock:
            for callers in self._versions.values():
                callers.pop(caller, None)

    def _series_of(self, model_version: str, caller: str) -> RewardSeries:
        """Returns where to note the rewards; the version that was used last is the newest."""
        with self._lock:
            callers = self._versions.pop(model_version, {})
            self._versions[model_version] = callers
            if len(self._versions) > MAX_VERSIONS:
                del self._versions[next(iter(self._versions))]
            if caller not in callers:
                callers[caller] = RewardSeries(model_version, caller, self._config)
            return callers[caller]


def _reports_of(series: Sequence[RewardSeries]) -> list[RewardReport]:
    reports = [each.report() for each in series]
    return [report for report in reports if report is not None]


def _point_of(observation: Observation, *, closely: bool) -> Point:
    completion = observation.completion
    return Point(
        reward=observation.reward,
        spread=observation.spread,
        length=len(completion),
        is_text=isinstance(completion, str),
        repetition=repetition_of(_end_of(completion)) if closely else None,
    )


def _end_of(completion: str | Sequence[int]) -> Sequence[Hashable]:
    """Returns the last words, or tokens."""
    if not isinstance(completion, str):
        return completion[-REPETITION_UNITS:]
    words = completion[-REPETITION_CHARACTERS:].split()
    return words[-REPETITION_UNITS:]
