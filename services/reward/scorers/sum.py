"""A reward that is a weighted sum of named others: a model's, less a penalty for length, plus what a judge says.

    reward = sum of weight * reward of the component
    spread = root of the sum of squares of weight * spread, over the components that have one

An item that one component cannot score has no reward: a sum that lacks a part is a number that was made up.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from rlhf.client.reward_types import ComponentReward
from rlhf.errors import ConfigError
from services.reward.scorers.fault_isolation import checked_outcome, run_isolated
from services.reward.scorers.scorer import (
    Item,
    Outcome,
    Score,
    ScoreError,
    Scorer,
    ScorerInfo,
    reward_of,
)

Parts = tuple[Any, ...]
"""An item as each of the components takes it, in their order."""


@dataclass(frozen=True, slots=True)
class Component:
    """A named part of the sum."""

    name: str
    weight: float
    scorer: Scorer[Any]
    waits: bool = False
    """Whether it spends its time waiting for another process: then it does not keep the others waiting."""


class SumScorer:
    """A Scorer over components."""

    def __init__(self, components: Sequence[Component]) -> None:
        """Prepares the scorer.

        Args: components: at least one; names differ, weights are finite and not all 0.
        Raises: ConfigError if two components read token ids of different tokenizers.
        """
        infos = [component.scorer.info for component in components]
        self._components = components
        self._pool = ThreadPoolExecutor(max_workers=len(components), thread_name_prefix="component")
        limits = [info.max_sequence_tokens for info in infos if info.max_sequence_tokens]
        parts = [(each.name, each.weight, info.version) for each, info in zip(components, infos, strict=True)]
        self.info = ScorerInfo(
            name="sum of " + ", ".join(f"{each.weight:g} {each.name}" for each in components),
            version=f"sum-{blake3(repr(parts).encode()).hexdigest()[:16]}",
            tokenizer_digest=_common_digest(components),
            max_sequence_tokens=min(limits, default=0),
            pads=any(info.pads for info in infos),
        )

    def prepare(self, item: Item) -> Parts | ScoreError:
        """Returns the item as each component takes it."""
        parts = []
        for component in self._components:
            prepared = component.scorer.prepare(item)
            if isinstance(prepared, ScoreError):
                return _named(component, prepared)
            parts.append(prepared)
        return tuple(parts)

    def size_of(self, prepared: Parts) -> int:
        """Returns the largest of the components' sizes."""
        sizes = (component.scorer.size_of(part) for component, part in zip(self._components, prepared, strict=True))
        return max(sizes)

    def score(self, batch: list[Parts]) -> list[Score | ScoreError]:
        """Returns the sum of each item, with its parts. Components that wait for others are asked beside the rest."""
        columns = list(zip(*batch, strict=True))
        futures = {
            index: self._pool.submit(_run, component, columns[index])
            for index, component in enumerate(self._components)
            if component.waits
        }
        # The rest one after the other, in this thread: two models would only take turns at the same cores.
        computed = {
            index: _run(component, columns[index])
            for index, component in enumerate(self._components)
            if not component.waits
        }
        outcomes = computed | {index: future.result() for index, future in futures.items()}
        return [self._sum(row) for row in zip(*(outcomes[index] for index in range(len(columns))), strict=True)]

    def close(self) -> None:
        """Closes the components."""
        self._pool.shutdown()
        for component in self._components:
            component.scorer.close()

    def _sum(self, outcomes: Sequence[Outcome]) -> Score | ScoreError:
        rewards = []
        for component, outcome in zip(self._components, outcomes, strict=True):
            if isinstance(outcome, ScoreError):
                return _named(component, outcome)
            spread = outcome.spread if isinstance(outcome, Score) else None
            rewards.append(ComponentReward(component.name, component.weight, reward_of(outcome), spread))
        spreads = [each.weight * each.spread for each in rewards if each.spread is not None]
        return Score(
            reward=math.fsum(each.weight * each.reward for each in rewards),
            spread=math.hypot(*spreads) if spreads else None,
            components=tuple(rewards),
        )


def _run(component: Component, batch: Sequence[Any]) -> list[Outcome]:
    """What becomes of each item; a failure is its own item's, and no other component has to score the batch again."""
    return run_isolated(component.scorer.score, list(batch), checked_outcome)


def _named(component: Component, error: ScoreError) -> ScoreError:
    return ScoreError(error.code, f"component '{component.name}': {error.message}")


def _common_digest(components: Sequence[Component]) -> str:
    """Returns the digest of the tokenizer that all components with one share; empty if none has one."""
    having = [component for component in components if component.scorer.info.tokenizer_digest]
    for component in having[1:]:
        if component.scorer.info.tokenizer_digest != having[0].scorer.info.tokenizer_digest:
            raise ConfigError(
                f"scorer.components has '{component.name}', whose tokenizer is not that of '{having[0].name}'; token "
                "ids would mean other texts to it: use models and tokenizers of one family"
            )
    return having[0].scorer.info.tokenizer_digest if having else ""
