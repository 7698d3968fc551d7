import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from rlhf.errors import InvalidRequestError, NotReadyError, OverloadedError, PreconditionError
from rlhf.weights import PushHeader, PushResult
from services.policy.config import LimitsConfig
from services.policy.metrics import PolicyMetrics
from services.policy.updater import PushChunk, PushCommit, ServedWeights, WeightUpdater
from tests.unit.services.policy.fake_engine import LOADED, FakeEngine, manifest_of

NEW = {"a": b"\x05" * 12, "b": b"\x06" * 8}
MANIFEST = manifest_of(NEW)
PAYLOAD = b"".join(NEW.values())
OLD = ServedWeights(0, manifest_of(LOADED).digest)


def header(version: int = 1, encoding: str = "full") -> PushHeader:
    return PushHeader(
        policy_version=version,
        base_policy_version=0,
        encoding=encoding,
        manifest=MANIFEST,
        weights_digest=MANIFEST.digest,
    )


async def stream(*parts: object, hang: bool = False) -> AsyncIterator[object]:
    for part in parts:
        yield part
    if hang:
        await asyncio.sleep(60)


def whole(version: int = 1) -> AsyncIterator[object]:
    return stream(header(version), PushChunk(0, PAYLOAD), PushCommit())


class Bench:
    def __init__(self, idle_seconds: float = 0.05) -> None:
        self.engine = FakeEngine()
        self.registry = CollectorRegistry()
        limits = LimitsConfig(max_chunk_bytes=1024, push_idle_seconds=idle_seconds, push_silence_seconds=0.03)
        self.updater = WeightUpdater(self.engine, limits, PolicyMetrics(self.registry))
        self.updater.start()

    def failures(self, reason: str) -> float | None:
        return self.registry.get_sample_value("rlhf_policy_push_failures_total", {"reason": reason})


async def test_a_whole_push_reaches_the_engine_and_is_served_from_then_on():
    bench = Bench()
    assert bench.updater.served == OLD
    outcome = await bench.updater.push(whole(3))
    assert outcome.stage_seconds > 0
    assert replace(outcome, stage_seconds=0) == PushResult(
        policy_version=3, weights_digest=MANIFEST.digest, pause_seconds=0.25
    )
    assert bench.engine.swaps == [NEW]
    assert bench.updater.served == ServedWeights(3, MANIFEST.digest)
    assert bench.registry.get_sample_value("rlhf_policy_version") == 3
    assert (
        bench.registry.get_sample_value("rlhf_policy_push_bytes_total", {"encoding": "full"}) == 20
    )  # 12 of a, 8 of b
    assert bench.registry.get_sample_value("rlhf_policy_push_changed_fraction") == 1


async def test_pushing_what_is_served_needs_no_payload_and_no_swap():
    bench = Bench()
    await bench.updater.push(whole())
    outcome = await bench.updater.push(stream(header()))
    assert outcome == PushResult(policy_version=1, weights_digest=MANIFEST.digest, pause_seconds=0.0)
    assert len(bench.engine.swaps) == 1


async def test_a_lower_version_is_taken_for_a_new_run_starts_over():
    bench = Bench()
    await bench.updater.push(whole(9))
    await bench.updater.push(whole(1))
    assert bench.updater.served.policy_version == 1


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], InvalidRequestError, "ended before its commit"),
        ([PushCommit()], InvalidRequestError, "first part of a push must be its header"),
        ([header(0)], InvalidRequestError, r"header\.policy_version is 0; it must be at least 1"),
        ([header(encoding="unspecified")], InvalidRequestError, r"header\.encoding is unspecified"),
        ([header(encoding="sparse_patch")], PreconditionError, "send WEIGHTS_ENCODING_FULL"),
        ([header(), header()], InvalidRequestError, "a second header"),
        ([header(), PushChunk(0, PAYLOAD)], InvalidRequestError, "ended before its commit"),
        ([header(), PushChunk(0, PAYLOAD[:8]), PushCommit()], InvalidRequestError, "after 8 of 20 bytes"),
        ([header(), PushChunk(0, b"x" * 1025)], InvalidRequestError, r"chunk\.data has 1025 bytes, the limit is 1024"),
        ([header(), PushChunk(0, PAYLOAD[::-1]), PushCommit()], InvalidRequestError, "tensor 'a' arrived with digest"),
    ],
)
async def test_anything_else_changes_nothing_and_does_not_block_the_next_push(parts, error, message):
    bench = Bench()
    with pytest.raises(error, match=message):
        await bench.updater.push(stream(*parts))
    assert bench.updater.served == OLD
    assert bench.engine.swaps == []
    assert bench.failures(error.status.lower()) == 1
    assert bench.registry.get_sample_value("rlhf_policy_push_bytes_total", {"encoding": "full"}) is None
    await bench.updater.push(whole())
    assert bench.engine.swaps == [NEW]


async def test_a_push_that_stalls_is_given_up():
    bench = Bench()
    with pytest.raises(InvalidRequestError, match=r"nothing came for 0\.05 s"):
        await bench.updater.push(stream(header(), hang=True))
    await bench.updater.push(whole())


async def test_a_second_push_is_refused_while_one_is_under_way():
    bench = Bench()
    bench.engine.swap_gate.clear()
    first = asyncio.create_task(bench.updater.push(whole(4)))
    await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError, match="a push of policy version 4 is under way"):
        await bench.updater.push(whole(5))
    bench.engine.swap_gate.set()
    assert (await first).policy_version == 4


async def test_a_push_that_has_fallen_silent_makes_room_for_another_one():
    bench = Bench(idle_seconds=30)
    silent = asyncio.create_task(bench.updater.push(stream(header(4), PushChunk(0, PAYLOAD[:8]), hang=True)))
    await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError, match="a push of policy version 4 is under way"):
        await bench.updater.push(whole(5))
    await asyncio.sleep(0.03)  # 0.04 s of silence; 0.03 are too many
    assert (await bench.updater.push(whole(5))).policy_version == 5
    with pytest.raises(OverloadedError, match="had fallen silent when another one came"):
        await silent
    assert bench.engine.swaps == [NEW]


async def test_a_swap_is_not_silence():
    bench = Bench()
    bench.engine.swap_gate.clear()
    first = asyncio.create_task(bench.updater.push(whole(4)))
    await asyncio.sleep(0.06)
    with pytest.raises(OverloadedError, match="a push of policy version 4 is under way"):
        await bench.updater.push(whole(5))
    bench.engine.swap_gate.set()
    assert (await first).policy_version == 4


async def test_a_caller_who_leaves_during_the_swap_leaves_it_whole():
    bench = Bench()
    bench.engine.swap_gate.clear()
    pushing = asyncio.create_task(bench.updater.push(whole(4)))
    await asyncio.sleep(0.01)
    pushing.cancel()
    await asyncio.sleep(0.01)
    assert not pushing.done()
    bench.engine.swap_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await pushing
    assert bench.engine.swaps == [NEW]
    assert bench.updater.served.policy_version == 4


async def test_an_engine_that_fails_the_swap_keeps_the_old_version():
    bench = Bench()
    bench.engine.error = NotReadyError("the engine is stuck")
    with pytest.raises(NotReadyError, match="the engine is stuck"):
        await bench.updater.push(whole())
    assert bench.updater.served == OLD
    assert bench.failures("unavailable") == 1
