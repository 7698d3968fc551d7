"""Patches through the updater: bases, failures of the engine, and the memory beside it."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from rlhf.errors import InvalidRequestError, NotReadyError, PreconditionError
from rlhf.weights import PushHeader
from services.policy.config import LimitsConfig
from services.policy.metrics import PolicyMetrics
from services.policy.updater import PushChunk, PushCommit, PushPart, ServedWeights, WeightUpdater
from services.policy.weights.memory_file import WeightsFile
from tests.unit.services.policy.fake_engine import INFO, LOADED, FakeEngine, manifest_of, read_staged
from tests.unit.services.policy.test_patch_payload import HEADER, NEW, PATCH

OLD = ServedWeights(0, manifest_of(LOADED).digest)
PUSH = replace(HEADER, base_policy_version=0, base_weights_digest=OLD.digest)
LOADED_PUSH = PushHeader.full(4, manifest_of(LOADED))


async def patch(header: PushHeader = PUSH, payload: bytes = PATCH.frame) -> AsyncIterator[PushPart]:
    yield header
    yield PushChunk(0, payload)
    yield PushCommit()


def full(header: PushHeader, tensors: dict[str, bytes]) -> AsyncIterator[PushPart]:
    return patch(header, b"".join(tensors[info.name] for info in header.manifest.tensors))


class Bench:
    """An updater and its engine; the copy is made as an engine makes it."""

    def __init__(self, *, takes_patches: bool = True) -> None:
        self.copy = WeightsFile()
        for info in INFO.manifest.tensors:
            self.copy.add(info, memoryview(LOADED[info.name]))
        self.engine = FakeEngine()
        self.engine.info = replace(INFO, copy=self.copy if takes_patches else None)
        self.registry = CollectorRegistry()
        self.updater = WeightUpdater(
            self.engine, LimitsConfig(takes_patches=takes_patches), PolicyMetrics(self.registry)
        )
        self.updater.start()


async def test_a_patch_reaches_the_engine_as_what_changed_and_with_all_weights_for_repair():
    bench = Bench()
    result = await bench.updater.push(patch())
    assert (result.policy_version, result.weights_digest) == (5, HEADER.weights_digest)
    assert bench.engine.patches == [{"a": ([1, 2], [1.5, -2.0])}]
    assert bench.engine.swaps == [NEW]
    assert bench.updater.served == ServedWeights(5, HEADER.weights_digest)
    sample = bench.registry.get_sample_value
    assert sample("rlhf_policy_pushes_total", {"encoding": "sparse_patch"}) == 1
    assert sample("rlhf_policy_push_bytes_total", {"encoding": "sparse_patch"}) == len(PATCH.frame)
    assert sample("rlhf_policy_push_changed_fraction") == 2 / 5


@pytest.mark.parametrize(
    "wrong", [{"base_policy_version": 3}, {"base_weights_digest": "other"}, {"base_weights_digest": ""}]
)
async def test_a_patch_of_other_weights_is_refused_with_those_that_are_held(wrong):
    bench = Bench()
    with pytest.raises(PreconditionError, match=f"at version 0 with digest '{OLD.digest}': send WEIGHTS_ENCODING_FULL"):
        await bench.updater.push(patch(replace(PUSH, **wrong)))
    assert bench.updater.served == OLD
    assert (await bench.updater.push(patch())).policy_version == 5


async def test_without_a_copy_patches_are_refused_and_full_pushes_are_not():
    bench = Bench(takes_patches=False)
    assert not bench.updater.takes_patches
    with pytest.raises(PreconditionError, match=r"does not take \(limits\.takes_patches\); send WEIGHTS_ENCODING_FULL"):
        await bench.updater.push(patch())
    await bench.updater.push(full(LOADED_PUSH, LOADED))
    assert bench.engine.swaps == [LOADED]
    assert not bench.updater.takes_patches


@pytest.mark.parametrize("failure", ["engine", "digest", "short"])
async def test_a_patch_that_fails_leaves_the_copy_as_it_was(failure):
    bench = Bench()
    if failure == "engine":
        bench.engine.error = NotReadyError("the engine is stuck")
        with pytest.raises(NotReadyError, match="the engine is stuck"):
            await bench.updater.push(patch())
    elif failure == "digest":
        wrong = manifest_of({**NEW, "a": b"\x07" * 12})
        with pytest.raises(InvalidRequestError, match="tensor 'a' arrived with digest"):
            await bench.updater.push(patch(replace(PUSH, manifest=wrong, weights_digest=wrong.digest)))
    else:
        with pytest.raises(InvalidRequestError, match="inside the patch of tensor 'a'"):
            await bench.updater.push(patch(PUSH, PATCH.frame[:-1]))
    assert read_staged(bench.copy.staged(0)) == LOADED
    assert bench.updater.served == OLD
    bench.engine.error = None
    await bench.updater.push(patch())
    assert bench.engine.swaps == [NEW]


async def test_a_patch_applies_to_what_a_full_push_has_brought_and_a_full_push_to_anything():
    bench = Bench()
    await bench.updater.push(full(LOADED_PUSH, LOADED))
    await bench.updater.push(patch(replace(PUSH, base_policy_version=4)))
    await bench.updater.push(full(replace(LOADED_PUSH, policy_version=6), LOADED))
    await bench.updater.push(patch(replace(PUSH, base_policy_version=6, policy_version=7)))
    assert bench.engine.swaps == [LOADED, NEW, LOADED, NEW]
    assert bench.updater.served == ServedWeights(7, HEADER.weights_digest)
