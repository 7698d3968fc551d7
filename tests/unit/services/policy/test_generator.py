import asyncio

import pytest
from prometheus_client import CollectorRegistry

from rlhf.errors import NotReadyError, OverloadedError
from rlhf.rollout import Prompt, Sampling
from services.policy.config import LimitsConfig
from services.policy.generator import GenerateJob, Generator
from services.policy.metrics import PolicyMetrics
from services.policy.updater import WeightUpdater
from tests.unit.services.policy.fake_engine import FakeEngine

PROMPTS = [Prompt(group_id="g", prompt_ids=[1], seed=2**63 - 1), Prompt(group_id="h", prompt_ids=[3, 4])]


def job(num_completions: int = 2, stop_ids: tuple[int, ...] = ()) -> GenerateJob:
    sampling = Sampling(max_new_tokens=4, completions_per_prompt=num_completions, stop_ids=stop_ids)
    return GenerateJob(request_id="r", prompts=PROMPTS, sampling=sampling)


class Bench:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        limits = LimitsConfig(max_in_flight=6)
        self.registry = CollectorRegistry()
        metrics = PolicyMetrics(self.registry)
        weights = WeightUpdater(self.engine, limits, metrics)
        weights.start()
        self.generator = Generator(self.engine, weights, limits, metrics)

    def in_flight(self) -> float | None:
        return self.registry.get_sample_value("rlhf_policy_rollouts_in_flight")


async def test_each_prompt_is_completed_as_often_as_asked_under_seeds_and_request_ids_of_their_own():
    bench = Bench()
    rollouts = {rollout.rollout_id: rollout async for rollout in bench.generator.generate(job())}
    assert rollouts.keys() == {"g/0", "g/1", "h/0", "h/1"}
    assert rollouts["h/1"].completion_ids == [3, 4]
    assert [params.seed for params in bench.engine.params] == [2**63 - 1, 0, None, None]  # the largest seed wraps
    assert {params.stop_ids for params in bench.engine.params} == {(2,)}  # the model's own
    assert len(set(bench.engine.request_ids)) == 4
    assert bench.in_flight() == 0


async def test_the_callers_stop_ids_replace_the_models():
    bench = Bench()
    assert [rollout async for rollout in bench.generator.generate(job(stop_ids=(7, 8)))]
    assert {params.stop_ids for params in bench.engine.params} == {(7, 8)}


async def test_a_failure_of_one_completion_fails_the_call_and_cancels_the_rest():
    bench = Bench()
    bench.engine.error = NotReadyError("the engine is dead")
    with pytest.raises(NotReadyError, match="the engine is dead"):
        await anext(bench.generator.generate(job()))
    assert bench.engine.running == 0
    assert bench.in_flight() == 0


async def test_leaving_a_call_cancels_what_it_has_in_the_engine():
    bench = Bench()
    bench.engine.gate.clear()
    reading = asyncio.ensure_future(anext(bench.generator.generate(job())))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (bench.engine.running, bench.in_flight()) == (4, 4)
    reading.cancel()
    await asyncio.wait({reading})
    assert (bench.engine.running, bench.in_flight()) == (0, 0)


async def test_a_call_that_would_put_too_much_in_flight_is_refused_at_once():
    bench = Bench()
    bench.engine.gate.clear()
    first = asyncio.ensure_future(anext(bench.generator.generate(job(2))))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="4 completions are in flight and this call asks for 4; the limit is 6"):
        await anext(bench.generator.generate(job(2)))
    bench.engine.gate.set()
    assert (await first).group_id in "gh"
