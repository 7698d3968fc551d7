"""The held-out scorer: asked about a sample of the items, in a thread of its own, and never waited for."""

import math
import queue
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import Counter

from rlhf.logs import get_logger
from services.reward.scorers.scorer import Item, Observation, ScoreError, Scorer, TokenPair, TokenSequence, reward_of
from services.reward.watch.series import RewardSeries

log = get_logger(__name__)

_QUEUE_ITEMS = 256
_BATCH_ITEMS = 16
_CLOSE_SECONDS = 2.0

Work = tuple[RewardSeries, float, Item, str]
"""Who wants to know, the reward, the item, and the digest of the tokenizer that its ids are of."""


class HeldoutScoring:
    """Takes a share of the items and hands their held-out rewards to their series; drops items when it is behind."""

    def __init__(self, build_scorer: Callable[[], Scorer[Any]], fraction: float, counter: Counter) -> None:
        """Args: build_scorer: called in the thread, when the first item comes. counter: items, by `result`."""
        self._build_scorer = build_scorer
        self._fraction = fraction
        self._counter = counter
        self._waiting: queue.Queue[Work | None] = queue.Queue(_QUEUE_ITEMS)
        self._random = random.Random()
        self._started = False
        self._ended = False
        # A daemon: a scorer that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="heldout", daemon=True)

    def offer(self, series: RewardSeries, observations: Sequence[Observation], tokenizer_digest: str) -> None:
        """Takes a sample of a call's items. Never blocks. To be called by one thread."""
        for observation in observations:
            if self._random.random() >= self._fraction:
                continue
            if self._ended:
                self._counter.labels("failed").inc()
                continue
            try:
                self._waiting.put_nowait((series, observation.reward, observation.item, tokenizer_digest))
            except queue.Full:
                self._counter.labels("dropped").inc()
            if not self._started:
                # Not earlier: by now the service has loaded its own model, and two must not load at a time.
                self._started = True
                self._thread.start()

    def close(self) -> None:
        """Ends the thread after the batch that it is at."""
        self._ended = True
        if not self._started:
            return
        self._take_waiting(_QUEUE_ITEMS)
        self._waiting.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            scorer = self._build_scorer()
        # A border: whatever the held-out scorer's fault is, rewards go on without it.
        except Exception:
            log.exception("the held-out scorer cannot be built; there is no held-out gap. Mend watch.heldout")
            self._ended = True
            self._counter.labels("failed").inc(len(self._take_waiting(_QUEUE_ITEMS)))
            return
        while not self._ended:
            batch = [self._waiting.get(), *self._take_waiting(_BATCH_ITEMS - 1)]
            work = [item for item in batch if item is not None]
            if len(work) < len(batch):
                break
            self._score(scorer, work)
        scorer.close()

    def _take_waiting(self, most: int) -> list[Work | None]:
        """Returns what waits already, up to a number."""
        taken: list[Work | None] = []
        while len(taken) < most:
            try:
                taken.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return taken

    def _score(self, scorer: Scorer[Any], work: Sequence[Work]) -> None:
        try:
            rewards = _rewards_of(scorer, work)
        # A border: see _run.
        except Exception:
            log.warning("the held-out scorer failed", num_items=len(work), exc_info=True)
            rewards = [None] * len(work)
        for (series, reward, _, _), heldout in zip(work, rewards, strict=True):
            self._counter.labels("failed" if heldout is None else "scored").inc()
            if heldout is not None:
                series.add_pair(reward, heldout)


def _rewards_of(scorer: Scorer[Any], work: Sequence[Work]) -> list[float | None]:
    """Returns the held-out reward of each item, None for one without; raises what the scorer raises."""
    rewards: list[float | None] = [None] * len(work)
    prepared = [
        (place, scorer.prepare(item))
        for place, (_, _, item, digest) in enumerate(work)
        if _can_read(scorer, item, digest)
    ]
    good = [(place, each) for place, each in prepared if not isinstance(each, ScoreError)]
    outcomes = scorer.score([each for _, each in good]) if good else []
    for (place, _), outcome in zip(good, outcomes, strict=True):
        if not isinstance(outcome, ScoreError) and math.isfinite(reward_of(outcome)):
            rewards[place] = reward_of(outcome)
    return rewards


def _can_read(scorer: Scorer[Any], item: Item, tokenizer_digest: str) -> bool:
    """Token ids of another tokenizer would be scored as a text that nobody wrote."""
    return not isinstance(item, TokenPair | TokenSequence) or scorer.info.tokenizer_digest == tokenizer_digest
