"""The reward service as a reward function of TRL's trainers (GRPO, RLOO and their kin)."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from statistics import fmean
from typing import Any, TypeAlias

from rlhf.client.adapters.scoring import Text, close_gatherers, gatherer_for, make_item
from rlhf.client.patience import Patience
from rlhf.client.reward_types import Reward, RewardError
from rlhf.client.sync import LoopThread

logger = logging.getLogger(__name__)

LogMetric: TypeAlias = Callable[[str, float], None]
"""TRL hands one to each reward function, for numbers to log beside the rewards."""


class GrpcReward:
    """A reward function that asks a reward service: `GRPOTrainer(reward_funcs=GrpcReward("reward:50052"), ...)`.

    Takes prompts and completions as texts or as lists of messages; all of a batch go to the service together. A
    completion that cannot be scored gets None, by which TRL leaves it out, and a warning in the log; a service that
    fails, or stays away for longer than the patience lasts, raises.
    """

    def __init__(
        self, target: str, *, name: str = "grpc_reward", raw: bool = False, patience: Patience | None = None
    ) -> None:
        """Opens nothing before the first call, so it may be made before a process forks.

        Args:
            target: "host:port" of the service.
            name: under which TRL logs the rewards.
            raw: prompts that are texts have been through the chat template; send them as they are.
            patience: deadline, and how long to wait for a service that is away. None: the defaults.
        """
        self.__name__ = name
        self._target, self._raw = target, raw
        self._patience = patience or Patience()
        self._thread: LoopThread | None = None

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """Returns a reward, or None, for each completion. Raises: ServiceError if the service failed."""
        if self._thread is None:
            self._thread = LoopThread(self.__name__)
        outcomes = self._thread.run(_score(self._target, self._raw, self._patience, prompts, completions))
        return _answer(self.__name__, outcomes, columns.get("log_metric"))

    def close(self) -> None:
        """Closes the connection; a later call opens it again."""
        if self._thread is not None:
            self._thread.run(close_gatherers())
            self._thread.close()
            self._thread = None


def make_async_reward(
    target: str, *, name: str = "grpc_reward", raw: bool = False, patience: Patience | None = None
) -> Callable[..., Awaitable[list[float | None]]]:
    """Returns GrpcReward as a coroutine function: TRL runs all of those at the same time, others one after the other.

    Take it beside other slow reward functions; alone it gains nothing. The arguments are those of GrpcReward.
    """
    patience = patience or Patience()

    async def reward(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        outcomes = await _score(target, raw, patience, prompts, completions)
        return _answer(name, outcomes, columns.get("log_metric"))

    reward.__name__ = name
    return reward


async def _score(
    target: str, raw: bool, patience: Patience, prompts: Sequence[Text], completions: Sequence[Text]
) -> list[Reward | RewardError]:
    items = [make_item(*pair, raw=raw) for pair in zip(prompts, completions, strict=True)]
    return await gatherer_for(target, "trl", patience).score_all(items)


def _answer(name: str, outcomes: Sequence[Reward | RewardError], log_metric: LogMetric | None) -> list[float | None]:
    """Returns what TRL wants to have, having warned of errors and logged what a reward is made of."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, RewardError)]
    rewards = [outcome for outcome in outcomes if isinstance(outcome, Reward)]
    if errors:
        kinds = ", ".join(f"{code} ({count})" for code, count in Counter(error.code for error in errors).items())
        logger.warning(
            "%s: %d of %d completions have no reward: %s; the first: %s",
            name,
            len(errors),
            len(outcomes),
            kinds,
            errors[0].message,
        )
    if log_metric is not None:
        log_metric(f"{name}/unscored", float(len(errors)))
        for part, values in _parts(rewards).items():
            log_metric(f"{name}/{part}", fmean(values))
    return [outcome.reward if isinstance(outcome, Reward) else None for outcome in outcomes]


def _parts(rewards: Sequence[Reward]) -> dict[str, list[float]]:
    """Returns the rewards of each component by its name, and the spreads, if there are such."""
    parts: dict[str, list[float]] = {}
    for reward in rewards:
        if reward.spread is not None:
            parts.setdefault("spread", []).append(reward.spread)
        for component in reward.components:
            parts.setdefault(component.name, []).append(component.reward)
    return parts
