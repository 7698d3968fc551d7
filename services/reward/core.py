"""The service between wire and scorer: accepts calls, answers each once, and serves other weights when told to."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlhf.client.reward_types import LoadedModel, RewardReport
from rlhf.errors import InvalidRequestError, NotReadyError, PreconditionError, ServiceError
from rlhf.rollout import fault_of_digest
from services.reward.comparing import ComparisonOutcome, ComparisonPair
from services.reward.config import LimitsConfig
from services.reward.loading import ModelLoader
from services.reward.metrics import RewardMetrics
from services.reward.repeated_calls import CallKey, Repeats, digest_of
from services.reward.scorers.scorer import (
    Item,
    Observation,
    Outcome,
    Score,
    ScoreError,
    Scorer,
    ScorerInfo,
    completion_of,
    reward_of,
)
from services.reward.serving_model import ServingModel
from services.reward.watch.watch import RewardWatch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What became of the items or pairs of a call, in their order, and which version gave it."""

    outcomes: Sequence[T]
    model_version: str


class RewardCore:
    """Scores and compares items, each with a finite reward or an error; a Backend of rlhf.serving.server."""

    def __init__(
        self,
        build_scorer: Callable[[], Scorer[Any]],
        limits: LimitsConfig,
        metrics: RewardMetrics,
        watch: RewardWatch | None = None,
        loader: ModelLoader | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
            build_scorer: makes the scorer, in a thread, when the service loads; may raise ConfigError.
            limits: how much is accepted, and how it is batched.
            metrics: where to count.
            watch: told of every reward; None: there is none.
            loader: makes the scorers that load_model asks for; None: load_model is refused.
        """
        self.limits = limits
        self._build_scorer = build_scorer
        self._metrics = metrics
        self._watch = watch
        self._loader = loader
        self._model: ServingModel | None = None
        self._draining: dict[asyncio.Task[None], ServingModel] = {}
        self._loading: asyncio.Task[LoadedModel] | None = None
        self._scores: Repeats[Answer[Outcome]] = Repeats(_num_items, metrics.repeated_calls.inc)
        self._comparisons: Repeats[Answer[ComparisonOutcome]] = Repeats(_num_items, metrics.repeated_calls.inc)
        metrics.batch.watch_queue(lambda: sum(model.num_waiting for model in self._models()), limits.max_queue_items)

    async def load(self) -> None:
        """Builds the scorer and starts to batch. Raises: ConfigError."""
        scorer = await asyncio.to_thread(self._build_scorer)
        self._model = ServingModel(scorer, self.limits, self._metrics)

    async def check(self) -> None:
        """Raises NotReadyError while a batch is stuck in the scorer."""
        busy_seconds = self._serving().busy_seconds
        if busy_seconds > self.limits.stuck_after_seconds:
            raise NotReadyError(
                f"the scorer has been busy with one batch for {busy_seconds:.0f} s (more than "
                f"limits.stuck_after_seconds = {self.limits.stuck_after_seconds:g}); restart the service if it stays so"
            )

    async def close(self) -> None:
        """Stops the work; calls that still wait get NotReadyError."""
        if self._loading is not None:
            self._loading.cancel()
        for model in self._models():
            await model.close()
        if self._draining:
            await asyncio.wait(self._draining)
        if self._watch is not None:
            self._watch.close()

    @property
    def info(self) -> ScorerInfo:
        """What is served."""
        return self._serving().info

    async def score(
        self, items: Sequence[Item | None], *, tokenizer_digest: str = "", caller: str = "", request_id: str = ""
    ) -> Answer[Outcome]:
        """The outcome of each item, in order; None stands for an item without input.

        Args:
            tokenizer_digest: of the tokenizer that made the ids; empty: not checked.
            caller: whose call it is; callers share the scorer evenly.
            request_id: a repeat of it by the same caller gets the same answer, computed and counted once.
        Raises: InvalidRequestError for what concerns all items; OverloadedError if they do not fit into the queue.
        """
        self._require_acceptable(len(items), self.limits.max_items, tokenizer_digest)
        if not request_id:
            return await self._score(items, caller)
        key = CallKey(caller, request_id)
        return await self._scores.share(key, digest_of(items), lambda: self._score(items, caller))

    async def compare(
        self, pairs: Sequence[ComparisonPair], *, tokenizer_digest: str = "", caller: str = "", request_id: str = ""
    ) -> Answer[ComparisonOutcome]:
        """The outcome of each pair, in order. Args and Raises: as `score`."""
        self._require_acceptable(len(pairs), max(1, self.limits.max_items // 2), tokenizer_digest)
        if not request_id:
            return await self._compare(pairs, caller)
        key = CallKey(caller, request_id)
        return await self._comparisons.share(key, digest_of(pairs), lambda: self._compare(pairs, caller))

    async def load_model(self, paths: Sequence[str], component: str = "") -> LoadedModel:
        """Serves other weights, once they are loaded and tried; the present ones until then, and if that fails.

        A caller that leaves does not stop it.

        Args: paths: folders of checkpoints; component: which part of a weighted sum gets them.
        Raises: InvalidRequestError, PreconditionError; the present weights are served on.
        """
        if self._loader is None:
            raise PreconditionError("this service loads no other models; set models.allowed_roots and start it anew")
        if self._loading is not None:
            raise PreconditionError("another model is being loaded; repeat the call when that has ended")
        self._loading = asyncio.create_task(self._load_model(self._loader, list(paths), component))
        self._loading.add_done_callback(self._end_loading)
        loading = self._loading
        await asyncio.wait([loading])  # not loading itself: a caller that leaves would cancel it
        return loading.result()

    def report(self) -> Sequence[RewardReport]:
        """How rewards have developed, by version and caller, newest version first; empty without a watch."""
        return [] if self._watch is None else self._watch.reports()

    async def _score(self, items: Sequence[Item | None], caller: str) -> Answer[Outcome]:
        # Kept from here to the answer: what another call loads meanwhile is not this one's.
        model = self._serving()
        answer = Answer(await model.score(items, caller), model.info.version)
        self._metrics.count(answer.outcomes, answer.model_version)
        if self._watch is not None:
            observations = [
                _observe(item, outcome)
                for item, outcome in zip(items, answer.outcomes, strict=True)
                if item is not None and not isinstance(outcome, ScoreError)
            ]
            self._watch.observe(answer.model_version, caller, observations, model.info.tokenizer_digest)
        return answer

    async def _compare(self, pairs: Sequence[ComparisonPair], caller: str) -> Answer[ComparisonOutcome]:
        model = self._serving()
        answer = Answer(await model.compare(pairs, caller), model.info.version)
        self._metrics.count(_outcomes_of(answer), answer.model_version)
        return answer

    async def _load_model(self, loader: ModelLoader, paths: list[str], component: str) -> LoadedModel:
        old = self._serving()
        try:
            new = await loader.load(paths, component, old.info)
        except ServiceError:
            self._metrics.model_loads.labels("failed").inc()
            raise
        self._model = ServingModel(new.scorer, self.limits, self._metrics)
        loader.keep(new)
        self._metrics.model_loads.labels("ok").inc()
        draining = asyncio.create_task(old.drain())
        self._draining[draining] = old
        draining.add_done_callback(self._draining.pop)
        return LoadedModel(self._model.info.version, old.info.version, new.seconds)

    def _end_loading(self, task: asyncio.Task[LoadedModel]) -> None:
        self._loading = None
        if not task.cancelled():
            task.exception()  # seen, also where the caller has gone; the loader has logged it

    def _models(self) -> list[ServingModel]:
        serving = [] if self._model is None else [self._model]
        return [*serving, *self._draining.values()]

    def _require_acceptable(self, num_items: int, max_items: int, tokenizer_digest: str) -> None:
        if num_items == 0:
            raise InvalidRequestError("items is empty; send at least one")
        if num_items > max_items:
            raise InvalidRequestError(f"items has {num_items} entries, the limit is {max_items}; split the batch")
        fault = fault_of_digest(tokenizer_digest, self.info.tokenizer_digest)
        if fault is not None:
            raise InvalidRequestError(fault)

    def _serving(self) -> ServingModel:
        if self._model is None:
            raise NotReadyError("the scorer is still loading; repeat the call when the service's health is SERVING")
        return self._model


def _num_items(answer: Answer[Any]) -> int:
    return len(answer.outcomes)


def _observe(item: Item, outcome: float | Score) -> Observation:
    spread = outcome.spread if isinstance(outcome, Score) else None
    return Observation(reward_of(outcome), spread, completion_of(item), item)


def _outcomes_of(answer: Answer[ComparisonOutcome]) -> list[Outcome]:
    """The rewards and errors that a comparison's answer is made of; a judge's has no rewards."""
    outcomes: list[Outcome] = []
    for outcome in answer.outcomes:
        if isinstance(outcome, ScoreError):
            outcomes.append(outcome)
            continue
        outcomes += [reward for reward in (outcome.first_reward, outcome.second_reward) if reward is not None]
    return outcomes
