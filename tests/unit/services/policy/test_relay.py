import asyncio
from dataclasses import replace

import grpc
import pytest

from rlhf.weights import PatchPart, PushHeader
from services.policy.weights.relay import PIECE_BYTES, Relay
from tests.unit.services.policy.fake_engine import manifest_of
from tests.unit.services.policy.relaying_replica import (
    PATIENCE_SECONDS,
    MemorySource,
    closed_target,
    replicas_of,
    silent_server,
)

# Three pieces: two whole ones and 20 bytes.
PAYLOAD = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"\x07" * 20
MANIFEST = manifest_of({"a": PAYLOAD[:20], "b": PAYLOAD[20:]})
HALF = len(PAYLOAD) // 2
DEADLINE_SECONDS = 20.0


def header_to(*targets: str) -> PushHeader:
    return replace(PushHeader.full(3, MANIFEST), relay_targets=targets)


def relay_to(*targets: str, source: MemorySource | None = None, deadline: float = DEADLINE_SECONDS) -> Relay:
    relay = Relay(
        header_to(*targets),
        MemorySource(PAYLOAD) if source is None else source,
        patience_seconds=PATIENCE_SECONDS,
        deadline_seconds=deadline,
    )
    relay.start()
    return relay


async def outcomes_at(*targets: str, deadline: float = DEADLINE_SECONDS) -> list[str]:
    """Relays everything at once; returns the error of each target, in their order."""
    relay = relay_to(*targets, deadline=deadline)
    relay.commit()
    relayed = await asyncio.wait_for(relay.result(), DEADLINE_SECONDS)
    assert tuple(each.target for each in relayed) == targets
    for each in relayed:
        assert each.error or (each.policy_version, each.weights_digest) == (3, MANIFEST.digest)
    return [each.error for each in relayed]


async def test_a_push_without_targets_ends_here():
    relay = relay_to()
    relay.commit()
    assert await relay.result() == ()
    await relay.cancel()


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
async def test_each_replica_gets_the_push_from_the_one_before_it(num_replicas):
    async with replicas_of(num_replicas) as replicas:
        targets = tuple(replica.target for replica in replicas)
        assert await outcomes_at(*targets) == [""] * num_replicas
        for place, replica in enumerate(replicas):
            assert replica.served == PAYLOAD
            assert replica.asked == [targets[place + 1 :]]


async def test_pieces_are_relayed_as_they_arrive_and_the_commit_waits_for_ours():
    async with replicas_of(1) as (replica,):
        source = MemorySource()
        relay = relay_to(replica.target, source=source)
        source.arrive(PAYLOAD[:HALF])
        source.arrive(PAYLOAD[HALF:])
        await asyncio.sleep(0.2)
        assert replica.asked == [()]
        assert replica.served == b""
        relay.commit()
        assert [each.error for each in await relay.result()] == [""]
        assert replica.served == PAYLOAD


async def test_a_patch_has_as_many_bytes_as_its_frames():
    async with replicas_of(1) as (replica,):
        parts = (PatchPart(0, 0), PatchPart(2, 5))
        header = replace(header_to(replica.target), encoding="sparse_patch", parts=parts)
        relay = Relay(header, MemorySource(b"frame"), patience_seconds=1, deadline_seconds=None)
        relay.start()
        relay.commit()
        assert [each.error for each in await relay.result()] == [""]
        assert replica.served == b"frame"


async def test_a_replica_that_is_dead_at_the_start_is_left_out():
    async with replicas_of(3) as (first, second, last):
        dead = await closed_target()
        errors = await outcomes_at(first.target, dead, second.target, last.target)
        assert [bool(error) for error in errors] == [False, True, False, False]
        assert f"policy service at {dead}: " in errors[1]
        assert [first.served, second.served, last.served] == [PAYLOAD] * 3
        # The first one went on with the third, which served the last one as usual.
        assert second.asked == [(last.target,)]


async def test_behind_a_replica_that_dies_on_the_way_everything_is_sent_again():
    async with replicas_of(3) as (first, middle, last):
        middle.dies_after = HALF
        errors = await outcomes_at(first.target, middle.target, last.target)
        assert [bool(error) for error in errors] == [False, True, False]
        assert [first.served, middle.served, last.served] == [PAYLOAD, b"", PAYLOAD]


async def test_a_replica_that_accepts_and_never_answers_is_left_out_after_the_patience():
    async with replicas_of(2) as (first, last), silent_server() as silent:
        errors = await outcomes_at(first.target, silent, last.target)
        assert errors == ["", f"policy service at {silent} does not answer health checks for 0.4 s", ""]
        assert last.served == PAYLOAD


@pytest.mark.parametrize("status", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT])
async def test_a_replica_that_refuses_the_push_is_reported_in_its_own_words(status):
    async with replicas_of(2) as (first, last):
        first.refusals = [status]
        errors = await outcomes_at(first.target, last.target)
        assert errors == [f"policy service at {first.target}: it serves version 7", ""]
        assert last.served == PAYLOAD


async def test_a_replica_with_another_push_under_way_is_asked_again():
    async with replicas_of(1) as (replica,):
        replica.refusals = [grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert await outcomes_at(replica.target) == [""]
        assert replica.asked == [(), ()]
        replica.refusals = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 100
        assert await outcomes_at(replica.target) == [f"policy service at {replica.target}: it serves version 7"]


async def test_behind_a_replica_that_has_the_weights_already_the_next_one_is_served():
    async with replicas_of(2) as (first, last):
        first.has_it_already = True
        assert await outcomes_at(first.target, last.target) == ["", ""]
        assert last.served == PAYLOAD


async def test_a_push_that_never_ends_is_reported_before_the_deadline_of_the_one_that_came():
    async with replicas_of(3) as (first, stuck, last):
        stuck.never_ends = True
        errors = await outcomes_at(first.target, stuck.target, last.target, deadline=2.0)
        assert errors[0] == ""
        assert f"policy service at {stuck.target}: did not answer within" in errors[1]
        assert first.served == PAYLOAD
        assert stuck.served == b""


async def test_when_ours_fails_nobody_behind_it_commits():
    async with replicas_of(2) as (first, last):
        relay = relay_to(first.target, last.target)
        await asyncio.wait_for(last.was_asked.wait(), DEADLINE_SECONDS)
        await relay.cancel()
        await asyncio.wait_for(last.has_ended.wait(), DEADLINE_SECONDS)
        assert [first.served, last.served] == [b"", b""]
        await relay.cancel()


async def test_the_token_that_the_environment_names_is_shown_to_every_replica(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("one-secret\n")
    monkeypatch.setenv("RLHF_TOKEN_FILE", str(tmp_path / "token"))
    async with replicas_of(2) as (first, last):
        assert await outcomes_at(first.target, last.target) == ["", ""]
        assert first.tokens + last.tokens == ["Bearer one-secret"] * 2
