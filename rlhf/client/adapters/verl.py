"""The reward service as verl's custom reward function, for one completion a call.

verl calls it for many completions at the same time; those calls go to the service together. In verl's configuration:
custom_reward_function.path is a file with `from rlhf.client.adapters.verl import compute_score`, its name is
compute_score, and custom_reward_function.reward_kwargs.target says where the service is.
"""

import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rlhf.client.adapters.scoring import NoRewardError, Text, gatherer_for, make_item
from rlhf.client.patience import Patience
from rlhf.client.reward_types import RewardError
from rlhf.client.sync import LoopThread
from rlhf.errors import InvalidRequestError

PROMPT_KEYS = ("question", "prompt", "raw_prompt")
"""Where a data set's extra_info has the prompt, if prompt_key does not say."""


async def compute_score(
    data_source: object,
    solution_str: str,
    ground_truth: object = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    target: str,
    prompt_key: str | None = None,
    deadline_seconds: float = 120.0,
    wait_seconds: float = 300.0,
    **_: object,
) -> dict[str, float]:
    """Returns {"score": reward}, with "spread" for an ensemble and "component_NAME" for each part of a weighted sum.

    Args:
        data_source, ground_truth: not used; a reward model needs neither.
        solution_str: the completion.
        extra_info: of the data set's row; verl hands over no prompt, so it must be in there, as text or messages.
        target: "host:port" of the service.
        prompt_key: under which key it is. None: the first of PROMPT_KEYS that is there.
        deadline_seconds, wait_seconds: as for Patience.
        _: what verl adds, such as reward_router_address.
    Raises: NoRewardError if this completion cannot be scored; InvalidRequestError if there is no prompt; ServiceError
        if the service failed. Never a made-up number.
    """
    patience = Patience(deadline_seconds=deadline_seconds, wait_seconds=wait_seconds)
    item = make_item(_prompt(extra_info, prompt_key), solution_str)
    outcome = await gatherer_for(target, "verl", patience).score(item)
    if isinstance(outcome, RewardError):
        raise NoRewardError(outcome)
    extras = {} if outcome.spread is None else {"spread": outcome.spread}
    components = {f"component_{component.name}": component.reward for component in outcome.components}
    return {"score": outcome.reward, **extras, **components}


def compute_score_sync(
    data_source: object,
    solution_str: str,
    ground_truth: object = None,
    extra_info: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Returns what compute_score returns, for verl's reward managers that call from threads or one by one."""
    return _loop_thread().run(compute_score(data_source, solution_str, ground_truth, extra_info, **options))


def make_compute_score(target: str, **options: Any) -> Callable[..., Awaitable[dict[str, float]]]:
    """Returns compute_score for one service, for a verl without reward_kwargs; options are compute_score's."""

    async def score(*args: Any, **kwargs: Any) -> dict[str, float]:
        return await compute_score(*args, **{**kwargs, **options, "target": target})

    score.__name__ = "compute_score"
    return score


def _prompt(extra_info: Mapping[str, Any] | None, prompt_key: str | None) -> Text:
    keys = PROMPT_KEYS if prompt_key is None else (prompt_key,)
    found = next((extra_info[key] for key in keys if key in extra_info), None) if extra_info else None
    if found is None:
        raise InvalidRequestError(
            f"extra_info has the keys {sorted(extra_info or {})}, none of them {' or '.join(keys)}: let the data set "
            "put the prompt there, and name its key in reward_kwargs.prompt_key"
        )
    # Parquet gives messages as a NumPy array.
    return found if isinstance(found, str) else list(found)


_threads: dict[int, LoopThread] = {}
_threads_lock = threading.Lock()


def _loop_thread() -> LoopThread:
    """Returns this process's thread; verl's process pools fork, which leaves the parent's behind."""
    with _threads_lock:
        if os.getpid() not in _threads:
            _threads[os.getpid()] = LoopThread("verl-reward")
        return _threads[os.getpid()]
