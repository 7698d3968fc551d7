"""Client of the trainer service: watches and steers a run."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

import grpc

from rlhf.client.base import ServiceClient
from rlhf.client.codec import from_message
from rlhf.client.rpc_errors import from_rpc_error
from rlhf.v1 import trainer_pb2, trainer_pb2_grpc


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands; the fields are those of GetRunResponse."""

    run_name: str
    algorithm: str
    state: str
    """One of "starting", "running", "paused", "waiting", "finished", "failed"."""
    step: int
    step_count: int
    policy_version: int
    start_time: datetime
    message: str


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The metrics of one step, by name."""

    step: int
    end_time: datetime
    metrics: dict[str, float]


class TrainerClient(ServiceClient):
    """Watches and steers a run."""

    service = "trainer"
    full_name = "rlhf.v1.TrainerService"
    retried_methods = ("GetRun", "Pause", "Resume", "Stop")

    def __init__(self, target: str, *, token: str | None = None, caller: str = "") -> None:
        """Opens a channel; nothing is connected before the first call. The arguments are those of ServiceClient."""
        super().__init__(target, token=token, caller=caller)
        self._stub = trainer_pb2_grpc.TrainerServiceStub(self._channel)

    async def get_run(self, deadline_seconds: float = 10.0) -> Run:
        """Returns the run as it stands."""
        response = await self._call(self._stub.GetRun(trainer_pb2.GetRunRequest(), timeout=deadline_seconds))
        state = trainer_pb2.RunState.Name(response.state).removeprefix("RUN_STATE_").lower()
        return from_message(Run, response, state=state, start_time=response.start_time.ToDatetime())

    async def watch_run(self, from_step: int = 0, deadline_seconds: float | None = None) -> AsyncIterator[StepMetrics]:
        """Yields the metrics of each step as it ends, until the run ends; by default without a deadline."""
        call = self._stub.WatchRun(trainer_pb2.WatchRunRequest(from_step=from_step), timeout=deadline_seconds)
        try:
            async for response in call:
                yield StepMetrics(response.step, response.end_time.ToDatetime(), dict(response.metrics))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.service, self.target) from None
        finally:
            call.cancel()

    async def pause(self, deadline_seconds: float = 10.0) -> None:
        """Lets the step in progress end, then waits for resume()."""
        await self._call(self._stub.Pause(trainer_pb2.PauseRequest(), timeout=deadline_seconds))

    async def resume(self, deadline_seconds: float = 10.0) -> None:
        """Goes on after pause()."""
        await self._call(self._stub.Resume(trainer_pb2.ResumeRequest(), timeout=deadline_seconds))

    async def save_checkpoint(self, deadline_seconds: float = 600.0) -> str:
        """Returns the directory of a checkpoint written after the step in progress, as the trainer sees it."""
        request = trainer_pb2.SaveCheckpointRequest()
        response = await self._call(self._stub.SaveCheckpoint(request, timeout=deadline_seconds))
        return str(response.path)

    async def stop(self, deadline_seconds: float = 10.0) -> None:
        """Lets the step in progress end, has a checkpoint written, and ends the run."""
        await self._call(self._stub.Stop(trainer_pb2.StopRequest(), timeout=deadline_seconds))
