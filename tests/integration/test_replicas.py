"""Replicas that come and go behind one client: no call is lost, and new ones are found."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf.client import RewardClient, ScoreItem
from rlhf.errors import NotReadyError
from rlhf.v1 import reward_pb2
from tests.integration.test_serving import ITEM, Toy, ToyServicer, score_one

NUM_CALLERS = 8
LONG_ITEM = ScoreItem.text("a prompt", "long")


class NotingServicer(ToyServicer):
    """Notes who calls; a call takes 20 ms, so that there are always some in flight, and LONG_ITEM until `release`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = asyncio.Semaphore(0)
        self.peers: set[str] = set()
        self.release = asyncio.Event()

    async def Score(self, request, context) -> reward_pb2.ScoreResponse:
        self.calls.release()
        self.peers.add(context.peer())
        if request.items[0].text.completion == "long":
            await self.release.wait()
        await asyncio.sleep(0.02)
        return await score_one(request)

    async def wait_for_calls(self) -> None:
        self.calls = asyncio.Semaphore(0)
        for _ in range(10):
            await self.calls.acquire()


class Replica(Toy):
    def __init__(self, **config: object) -> None:
        super().__init__(**config)
        self.servicer: NotingServicer = NotingServicer()

    async def start(self) -> "Replica":
        await self.server.start()
        await self.server.wait_ready()
        return self


async def test_a_rolling_restart_loses_no_call():
    replicas = [await Replica().start(), await Replica().start()]
    ports = [replica.server.port for replica in replicas]
    done = asyncio.Event()

    async def call_until_done(client: RewardClient) -> int:
        num_calls = 0
        while not done.is_set():
            await client.score([ITEM])
            num_calls += 1
        return num_calls

    async with RewardClient("ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)) as client:
        callers = [asyncio.create_task(call_until_done(client)) for _ in range(NUM_CALLERS)]
        for index in (0, 1, 0, 1):
            await asyncio.wait_for(replicas[index].servicer.wait_for_calls(), 10)
            await replicas[index].server.stop()
            replicas[index] = await Replica(port=ports[index]).start()
        for replica in replicas:
            await asyncio.wait_for(replica.servicer.wait_for_calls(), 10)
        done.set()
        assert min(await asyncio.gather(*callers)) > 0  # A call that failed would be raised here.
    for replica in replicas:
        await replica.server.stop()


async def test_an_old_connection_is_replaced_and_cuts_no_call():
    async with Replica(max_connection_age_seconds=0.3) as replica:
        await replica.server.wait_ready()
        async with grpc.aio.insecure_channel(replica.target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            long_call = asyncio.create_task(replica.client.score([LONG_ITEM]))
            for _ in range(100):
                await replica.client.score([ITEM])
                if len(replica.servicer.peers) == 3:
                    break
            assert len(replica.servicer.peers) == 3
            replica.servicer.release.set()
            assert (await long_call).results
            # The stream is as old as the three connections together, and still brings what is new.
            replica.backend.error = NotReadyError("away")
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()


async def test_an_age_of_0_keeps_a_connection():
    async with Replica(max_connection_age_seconds=0) as replica:
        await replica.server.wait_ready()
        for _ in range(3):
            await replica.client.score([ITEM])
        assert len(replica.servicer.peers) == 1
