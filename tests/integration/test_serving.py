"""The bootstrap, through real sockets: a reward servicer whose behaviour each test chooses."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from rlhf.client import Reward, RewardClient, RewardError, ScoreItem
from rlhf.client.rpc_errors import from_rpc_error
from rlhf.errors import ConfigError, FatalError, InternalError, InvalidRequestError, NotReadyError, OverloadedError
from rlhf.serving.config import ServerConfig
from rlhf.serving.directory import REWARD
from rlhf.serving.server import ServiceServer
from rlhf.v1 import reward_pb2, reward_pb2_grpc

ITEM = ScoreItem.text("a prompt", "a completion")


class ToyBackend:
    """Loads at once and is healthy; tests set `error` to what check() raises, and `gate` to delay load()."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False

    async def load(self) -> None:
        await self.gate.wait()

    async def check(self) -> None:
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        self.closed = True


async def score_one(_: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    return reward_pb2.ScoreResponse(results=[reward_pb2.ScoreResult(reward=1.5)], model_version="v")


class ToyServicer(reward_pb2_grpc.RewardServiceServicer):
    def __init__(self) -> None:
        self.score: Callable[[reward_pb2.ScoreRequest], Awaitable[reward_pb2.ScoreResponse]] = score_one

    async def Score(self, request, context):
        return await self.score(request)


class Toy:
    """A server with its parts at hand."""

    def __init__(self, **config: object) -> None:
        self.backend = ToyBackend()
        self.servicer = ToyServicer()
        self.registry = CollectorRegistry()
        settings = {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "drain_seconds": 5.0, **config}
        self.server = ServiceServer(
            REWARD,
            ServerConfig(**settings),
            lambda server: reward_pb2_grpc.add_RewardServiceServicer_to_server(self.servicer, server),
            self.backend,
            registry=self.registry,
        )

    async def __aenter__(self) -> "Toy":
        await self.server.start()
        self.target = f"127.0.0.1:{self.server.port}"
        self.client = RewardClient(self.target)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.server.stop()


async def test_it_is_serving_only_once_the_model_is_loaded():
    toy = Toy()
    toy.backend.gate.clear()
    async with toy:
        assert not await toy.client.is_serving()
        with pytest.raises(NotReadyError, match=rf"reward service at {toy.target}: .*still loading"):
            await toy.client.score([ITEM])
        toy.backend.gate.set()
        await toy.server.wait_ready()
        assert await toy.client.is_serving()
        assert (await toy.client.score([ITEM])).results == [Reward("", 1.5)]


async def test_the_probe_tells_a_process_that_loads_from_one_that_serves(capfd):
    async def probe(*arguments: str) -> int:
        process = await asyncio.create_subprocess_exec(
            os.path.join(os.path.dirname(sys.executable), "rlhf-probe"), *arguments
        )
        return await process.wait()

    toy = Toy()
    toy.backend.gate.clear()
    async with toy:
        assert await probe("--live", toy.target) == 0
        assert await probe(toy.target) == 1
        assert f"rlhf-probe: {toy.target} says NOT_SERVING" in capfd.readouterr().err
        toy.backend.gate.set()
        await toy.server.wait_ready()
        assert await probe(toy.target) == 0
    assert await probe("--live", toy.target) == 1


async def test_readiness_follows_the_backend_off_and_on_again():
    async with Toy() as toy:
        await toy.server.wait_ready()
        toy.backend.error = NotReadyError("the engine is stuck")
        await asyncio.sleep(1.5)
        assert not await toy.client.is_serving()
        with pytest.raises(NotReadyError, match="the engine is stuck"):
            await toy.client.score([ITEM])
        toy.backend.error = None
        await asyncio.sleep(1.5)
        assert await toy.client.is_serving()


async def test_a_dead_backend_ends_the_service_and_says_why_meanwhile():
    async with Toy() as toy:
        await toy.server.wait_ready()
        toy.backend.error = FatalError("the engine died")
        await asyncio.wait_for(toy.server.wait_ended(), 5)
        assert isinstance(toy.server.failure, FatalError)
        with pytest.raises(NotReadyError, match="the engine died"):
            await toy.client.score([ITEM])


@pytest.mark.parametrize("error_class", [InvalidRequestError, OverloadedError, NotReadyError, InternalError])
async def test_an_error_class_crosses_the_wire_with_its_message(error_class):
    async def fail(_):
        raise error_class("items[3].prompt is ''; send some text")

    async with Toy() as toy:
        await toy.server.wait_ready()
        toy.servicer.score = fail
        with pytest.raises(error_class, match=r"items\[3\]\.prompt is ''; send some text"):
            await toy.client.score([ITEM])


async def test_an_overload_says_when_to_come_back_to_our_client_and_to_any_other():
    async def fail(_):
        raise OverloadedError("full", retry_after_seconds=1.25)

    async with Toy() as toy:
        await toy.server.wait_ready()
        toy.servicer.score = fail
        async with grpc.aio.insecure_channel(toy.target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await reward_pb2_grpc.RewardServiceStub(channel).Score(reward_pb2.ScoreRequest())
    assert from_rpc_error(error.value, "x", "y").retry_after_seconds == 1.25
    (detail,) = rpc_status.from_call(error.value).details
    info = error_details_pb2.RetryInfo()
    assert detail.Unpack(info)
    assert info.retry_delay.ToMilliseconds() == 1250


async def test_an_unforeseen_fault_becomes_internal_and_the_service_keeps_serving():
    async def fail(_):
        return 1 / 0

    async with Toy() as toy:
        await toy.server.wait_ready()
        toy.servicer.score = fail
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            await toy.client.score([ITEM])
        toy.servicer.score = score_one
        assert (await toy.client.score([ITEM])).results == [Reward("", 1.5)]


async def test_a_result_with_neither_reward_nor_error_is_an_error_and_never_zero():
    async def nothing(_):
        return reward_pb2.ScoreResponse(results=[reward_pb2.ScoreResult(item_id="x")])

    async with Toy() as toy:
        await toy.server.wait_ready()
        toy.servicer.score = nothing
        (result,) = (await toy.client.score([ITEM])).results
        assert isinstance(result, RewardError)


async def test_a_deadline_that_passes_names_the_service_and_cancels_its_work():
    cancelled = asyncio.Event()

    async def hang(_):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Toy() as toy:
        await toy.server.wait_ready()
        toy.servicer.score = hang
        with pytest.raises(NotReadyError, match=r"reward service at .* did not answer within"):
            await toy.client.score([ITEM], deadline_seconds=0.3)
        await asyncio.wait_for(cancelled.wait(), 5)


async def test_calls_in_flight_finish_when_the_service_drains():
    started, finish = asyncio.Event(), asyncio.Event()

    async def slow(request):
        started.set()
        await finish.wait()
        return await score_one(request)

    toy = Toy()
    async with toy:
        await toy.server.wait_ready()
        toy.servicer.score = slow
        call = asyncio.create_task(toy.client.score([ITEM]))
        await started.wait()
        stop = asyncio.create_task(toy.server.stop())
        await asyncio.sleep(0.2)
        assert not toy.backend.closed
        finish.set()
        assert (await call).results == [Reward("", 1.5)]
        await stop
        assert toy.backend.closed
        toy.server.stop = _nothing  # type: ignore[method-assign]


async def _nothing() -> None:
    return None


async def test_a_message_over_the_limit_is_refused():
    async with Toy(max_message_bytes=2048) as toy:
        await toy.server.wait_ready()
        with pytest.raises(OverloadedError, match="larger than max"):
            await toy.client.score([ScoreItem.text("x" * 4096, "y")])


@pytest.mark.parametrize("field", ["port", "metrics_port"])
async def test_a_port_in_use_is_named_with_the_remedy(field):
    async with Toy() as toy:
        second = Toy(**{field: getattr(toy.server, field)})
        with pytest.raises(ConfigError, match=rf"server\.{field} is \d+: already in use; .*--server\.{field} 0"):
            await second.server.start()


async def test_metrics_count_calls_by_code_and_tell_readiness():
    async with Toy() as toy:
        await toy.server.wait_ready()
        await toy.client.score([ITEM])
        url = f"http://127.0.0.1:{toy.server.metrics_port}/metrics"
        text = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
    labels = 'method="Score",service="rlhf.v1.RewardService"'
    assert f'rlhf_rpc_requests_total{{code="OK",{labels}}} 1.0' in text
    assert 'rlhf_ready{service="rlhf.v1.RewardService"} 1.0' in text


async def test_reflection_lists_the_service():
    async with Toy() as toy:

        def services() -> list[str]:
            with grpc.insecure_channel(toy.target) as channel:
                return list(ProtoReflectionDescriptorDatabase(channel).get_services())

        assert "rlhf.v1.RewardService" in await asyncio.to_thread(services)


SCRIPT = """
import sys
from tests.integration.test_serving import Toy
from rlhf.serving.directory import REWARD
from rlhf.serving.server import run_service
from rlhf.config import exit_on_config_error
from rlhf.serving.config import ServerConfig
import asyncio
async def make(): return Toy()
toy = asyncio.run(make())
config = ServerConfig(host="127.0.0.1", port=int(sys.argv[1]), metrics_port=0)
with exit_on_config_error("rlhf-toy"):
    sys.exit(run_service(REWARD, config, lambda server: None, toy.backend))
"""


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_drains_on_a_signal_and_exits_0(signal_number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if '"serving"' in line:
            break
    time.sleep(0.1)
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0, stderr
    assert '"draining"' in stderr


async def test_a_process_whose_port_is_taken_says_so_and_exits_2():
    async with Toy() as toy:
        command = [sys.executable, "-c", SCRIPT, str(toy.server.port)]
        process = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert f"rlhf-toy: server.port is {toy.server.port}: already in use" in process.stderr
