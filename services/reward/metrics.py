"""The reward service's metrics."""

from collections.abc import Sequence
from threading import Lock

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from rlhf.serving.batching.limits import BatchMetrics
from rlhf.serving.calls import SECONDS_BUCKETS
from services.reward.scorers.scorer import Outcome, Score, ScoreError
from services.reward.watch.report import MAX_VERSIONS, WatchGauges

_SPREAD_BUCKETS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
# Normalised rewards lie within 3 of 0 for the most part, so the buckets are closest there.
_SCORE_BUCKETS = (-10, -7.5, -5, -4, -3, -2.5, -2, -1.5, -1, -0.75, -0.5, -0.25, 0)
_SCORE_BUCKETS += tuple(-bound for bound in reversed(_SCORE_BUCKETS[:-1]))


class RewardMetrics:
    """Names are rlhf_reward_<what>_<base unit>; dashboards depend on them. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.batch = BatchMetrics("rlhf_reward", registry)
        self.items = Counter("rlhf_reward_items_total", "Items answered with a reward.", registry=registry)
        self.errors = Counter("rlhf_reward_errors_total", "Items answered with an error.", ["code"], registry=registry)
        self.score = Histogram(
            "rlhf_reward_score",
            "Rewards given. Prometheus has no _sum of values below 0: rlhf_reward_watch_mean has a mean.",
            ["model_version"],
            buckets=_SCORE_BUCKETS,
            registry=registry,
        )
        self.spread = Histogram(
            "rlhf_reward_spread",
            "Standard deviation of an ensemble's rewards for one item, in standard deviations of the training scores.",
            ["model_version"],
            buckets=_SPREAD_BUCKETS,
            registry=registry,
        )
        self.phase_seconds = Histogram(
            "rlhf_reward_phase_seconds",
            "Where the time goes: tokenise is one call's, queue one item's wait for its batch, model one batch's.",
            ["phase"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.repeated_calls = Counter(
            "rlhf_reward_repeated_calls_total",
            "Calls answered with what an earlier one of the same request_id got.",
            registry=registry,
        )
        self.model_loads = Counter(
            "rlhf_reward_model_loads_total", "Calls of LoadModel, by result.", ["result"], registry=registry
        )
        self.watch = WatchGauges(registry)
        for phase in ("tokenise", "queue", "model"):
            self.phase_seconds.labels(phase)
        for result in ("ok", "failed"):
            self.model_loads.labels(result)
        self._versions: list[str] = []
        self._lock = Lock()

    def count(self, outcomes: Sequence[Outcome], model_version: str) -> None:
        """Counts what a call's items got, and which version gave it. The one way in which answers are counted."""
        with self._lock:
            self._keep_newest(model_version)
            score, spread = self.score.labels(model_version), self.spread.labels(model_version)
            for outcome in outcomes:
                if isinstance(outcome, ScoreError):
                    self.errors.labels(outcome.code.name.lower()).inc()
                    continue
                self.items.inc()
                score.observe(outcome.reward if isinstance(outcome, Score) else outcome)
                if isinstance(outcome, Score) and outcome.spread is not None:
                    spread.observe(outcome.spread)

    def _keep_newest(self, model_version: str) -> None:
        if self._versions and self._versions[-1] == model_version:
            return
        if model_version in self._versions:
            self._versions.remove(model_version)
        self._versions.append(model_version)
        if len(self._versions) > MAX_VERSIONS:
            oldest = self._versions.pop(0)
            self.score.remove(oldest)
            self.spread.remove(oldest)
