"""Scores with verifiers and our rewards: verifiers_worker.py rubric|trace TARGET PAIRS. Prints JSON.

Runs in an environment of its own, because verifiers wants other versions than we do. PAIRS is JSON: pairs of prompt and
completion; the last has none, and must stay without a reward.
"""

import asyncio
import json
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from rlhf.client.adapters import verifiers as adapter
from rlhf.client.adapters.scoring import close_gatherers

Pairs = list[tuple[str, str]]


async def score_with_rubric(target: str, pairs: Pairs) -> dict[str, Any]:
    """A Rubric of verifiers 0.1: one completion at a time, and a group; the failure ends either."""
    Rubric = import_module("verifiers").Rubric  # noqa: N806 - a class

    states = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion}],
            "task": "t",
            "trajectory": [],
        }
        for prompt, completion in pairs
    ]
    *good, bad = states
    answer: dict[str, Any] = {"errors": []}
    for name, function in (("one", adapter.make_rubric_reward), ("group", adapter.make_rubric_group_reward)):
        rubric = Rubric(funcs=[function(target, name="helpful")], weights=[2.0])
        await rubric.score_group(good)
        answer[name] = [state["metrics"]["helpful"] for state in good]
        answer[f"{name}_weighted"] = [state["reward"] for state in good]
        try:
            await rubric.score_group([*good, bad])
        except adapter.RubricAbort as error:
            answer["errors"].append(str(error))
    return answer


async def score_traces(target: str, pairs: Pairs) -> dict[str, Any]:
    """Tasks of verifiers.v1 with the reward plugged in by its configuration."""
    vf, graph, types = (import_module(f"verifiers.v1{name}") for name in ("", ".graph", ".types"))

    # The configuration names functions of modules; a user has such a module as a file.
    sys.modules["our_rewards"] = SimpleNamespace(helpful=adapter.make_trace_reward(target))  # type: ignore[assignment]
    config = vf.TaskConfig(rewards={"helpful": {"fn": "our_rewards:helpful", "weight": 2.0}})
    answer: dict[str, Any] = {"one": [], "one_weighted": [], "errors": []}
    for prompt, completion in pairs:
        task = vf.Task(vf.TaskData(prompt=prompt), config)
        nodes = [
            graph.MessageNode(message=types.UserMessage(content=prompt)),
            graph.MessageNode(message=types.AssistantMessage(content=completion), parent=0, sampled=True),
        ]
        trace = vf.Trace(task={"type": "Task", "data": task.data}, agent={"config": vf.AgentConfig()}, nodes=nodes)
        try:
            await task.score(trace)
        except vf.TaskError as error:
            answer["errors"].append(str(error))
            assert trace.rewards == {"helpful": None}  # not run, which is not 0
            continue
        answer["one"].append(trace.rewards["helpful"].score)
        answer["one_weighted"].append(trace.reward)
    return answer


async def main() -> None:
    mode, target, pairs = sys.argv[1:]
    score = {"rubric": score_with_rubric, "trace": score_traces}[mode]
    print(json.dumps(await score(target, json.loads(pairs))))
    await close_gatherers()


if __name__ == "__main__":
    asyncio.run(main())
