"""TrainerService: the run's control over the wire."""

from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from rlhf.v1 import trainer_pb2, trainer_pb2_grpc
from services.trainer.service.control import RunControl

_STATES = MappingProxyType(
    {
        "starting": trainer_pb2.RUN_STATE_STARTING,
        "running": trainer_pb2.RUN_STATE_RUNNING,
        "paused": trainer_pb2.RUN_STATE_PAUSED,
        "waiting": trainer_pb2.RUN_STATE_WAITING,
        "finished": trainer_pb2.RUN_STATE_FINISHED,
        "failed": trainer_pb2.RUN_STATE_FAILED,
    }
)

Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Decodes, asks the run's control, encodes."""

    def __init__(self, control: RunControl) -> None:
        self._control = control

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(self, server)

    async def GetRun(self, request: trainer_pb2.GetRunRequest, context: Context) -> trainer_pb2.GetRunResponse:
        """Returns the run as it stands."""
        start_time = Timestamp()
        start_time.FromDatetime(self._control.start_time)
        return trainer_pb2.GetRunResponse(
            run_name=self._control.run_name,
            algorithm=self._control.algorithm,
            state=_STATES[self._control.state],
            step=self._control.step,
            step_count=self._control.num_steps,
            policy_version=self._control.policy_version,
            start_time=start_time,
            message=self._control.message,
        )

    async def WatchRun(
        self, request: trainer_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.WatchRunResponse]:
        """Streams the metrics of each step as it ends."""
        async for finished in self._control.watch(request.from_step):
            end_time = Timestamp()
            end_time.FromDatetime(finished.end_time)
            yield trainer_pb2.WatchRunResponse(step=finished.step, end_time=end_time, metrics=finished.metrics)

    async def Pause(self, request: trainer_pb2.PauseRequest, context: Context) -> trainer_pb2.PauseResponse:
        """Orders a pause."""
        await self._control.pause()
        return trainer_pb2.PauseResponse()

    async def Resume(self, request: trainer_pb2.ResumeRequest, context: Context) -> trainer_pb2.ResumeResponse:
        """Ends a pause."""
        await self._control.resume()
        return trainer_pb2.ResumeResponse()

    async def SaveCheckpoint(
        self, request: trainer_pb2.SaveCheckpointRequest, context: Context
    ) -> trainer_pb2.SaveCheckpointResponse:
        """Returns when a checkpoint is complete on disk."""
        path, step = await self._control.save_checkpoint()
        return trainer_pb2.SaveCheckpointResponse(path=str(path), step=step)

    async def Stop(self, request: trainer_pb2.StopRequest, context: Context) -> trainer_pb2.StopResponse:
        """Orders the end of the run."""
        await self._control.stop()
        return trainer_pb2.StopResponse()
