"""The reward service as a reward of verifiers: of a task (verifiers.v1), or of a Rubric (verifiers 0.1)."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rlhf.client.adapters.scoring import NoRewardError, Text, gatherer_for, make_item
from rlhf.client.patience import Patience
from rlhf.client.reward_types import Reward, RewardError
from rlhf.errors import ServiceError


class RubricAbort(BaseException):
    """There is no reward, and the run must end. Not an Exception: of each of those a Rubric makes the reward 0.0."""


def make_trace_reward(
    target: str, *, name: str = "grpc_reward", patience: Patience | None = None
) -> Callable[[Any], Awaitable[float]]:
    """Returns a reward of a trace, to be plugged into a task's `rewards` or called from a method with `@vf.reward`.

    It scores the conversation of the trace's final branch. Without a reward it raises, NoRewardError for the completion
    and ServiceError for the service, and verifiers marks the trace as failed: nothing is trained on it.

    Args:
        target: "host:port" of the service.
        name: the function's.
        patience: as for GrpcReward of adapters.trl.
    """
    patience = patience or Patience()

    async def reward(trace: Any) -> float:
        outcome = await gatherer_for(target, "verifiers", patience).score(make_item([], trace.messages))
        if isinstance(outcome, RewardError):
            raise NoRewardError(outcome)
        return outcome.reward

    reward.__name__ = name
    return reward


def make_rubric_reward(
    target: str, *, name: str = "grpc_reward", patience: Patience | None = None
) -> Callable[[Text, Text], Awaitable[float]]:
    """Returns a reward function for `vf.Rubric(funcs=[...])`, which calls it once for each completion.

    Without a reward it raises RubricAbort, which ends the run. The arguments are those of make_trace_reward.
    """
    patience = patience or Patience()

    async def reward(prompt: Text, completion: Text) -> float:
        try:
            outcome = await gatherer_for(target, "verifiers", patience).score(make_item(prompt, completion))
        except ServiceError as error:
            raise RubricAbort(str(error)) from error
        return _number(outcome)

    reward.__name__ = name
    return reward


def make_rubric_group_reward(
    target: str, *, name: str = "grpc_reward", patience: Patience | None = None
) -> Callable[[Sequence[Text], Sequence[Text]], Awaitable[list[float]]]:
    """Returns a group reward function for a Rubric, which calls it once for all completions of a prompt.

    As make_rubric_reward otherwise.
    """
    patience = patience or Patience()

    async def reward(prompts: Sequence[Text], completions: Sequence[Text]) -> list[float]:
        items = [make_item(*pair) for pair in zip(prompts, completions, strict=True)]
        try:
            outcomes = await gatherer_for(target, "verifiers", patience).score_all(items)
        except ServiceError as error:
            raise RubricAbort(str(error)) from error
        return [_number(outcome) for outcome in outcomes]

    reward.__name__ = name
    return reward


def _number(outcome: Reward | RewardError) -> float:
    if isinstance(outcome, RewardError):
        raise RubricAbort(str(NoRewardError(outcome)))
    return outcome.reward
