"""Starts the policy service: configuration, engine, servicer, bootstrap."""

import sys
from collections.abc import Sequence

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

from rlhf.config import exit_on_config_error, load_config
from rlhf.process import keep_freed_memory
from rlhf.serving.directory import POLICY
from rlhf.serving.server import ServiceServer, run_service
from rlhf.v1 import policy_pb2_grpc
from services.policy.config import PolicyConfig
from services.policy.engine import Engine
from services.policy.metrics import PolicyMetrics
from services.policy.servicer import PolicyServicer
from services.policy.updater import WeightUpdater


class PolicyBackend:
    """Implements serving.Backend with an engine."""

    def __init__(self, engine: Engine, config: PolicyConfig, registry: CollectorRegistry = REGISTRY) -> None:
        metrics = PolicyMetrics(registry)
        self._engine = engine
        self._weights = WeightUpdater(engine, config.limits, metrics)
        self._servicer = PolicyServicer(engine, self._weights, config, metrics)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        # Of two handlers for a method, the one that was added first is called.
        server.add_generic_rpc_handlers((self._servicer.push_handler(POLICY.full_name),))
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._servicer, server)

    async def load(self) -> None:
        """Loads the model."""
        await self._engine.start()
        self._weights.start()

    async def check(self) -> None:
        """Raises if the engine cannot sample."""
        await self._engine.check()

    async def close(self) -> None:
        """Ends the engine."""
        await self._engine.close()
        self._weights.close()


def make_engine(config: PolicyConfig) -> Engine:
    """Returns the engine that the configuration names, not started."""
    # Imported here: each engine brings seconds of imports, and the other one may not be installed.
    if config.model.engine == "vllm":
        from services.policy.vllm.engine import VllmEngine

        return VllmEngine(config)
    from services.policy.hf_engine import HfEngine

    return HfEngine(config)


def make_server(config: PolicyConfig, engine: Engine, registry: CollectorRegistry = REGISTRY) -> ServiceServer:
    """Returns the service around an engine, not started, for use inside another program's event loop."""
    backend = PolicyBackend(engine, config, registry)
    return ServiceServer(POLICY, config.server, backend.register, backend, registry=registry)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service until it is told to end; returns the exit code."""
    with exit_on_config_error(POLICY.command):
        config = load_config(PolicyConfig, prog=POLICY.command, argv=argv, env_prefix=POLICY.env_prefix)
        keep_freed_memory()
        backend = PolicyBackend(make_engine(config), config)
        return run_service(POLICY, config.server, backend.register, backend)
    raise AssertionError("unreachable: the context manager exits")


if __name__ == "__main__":  # vLLM's processes import this module anew
    sys.exit(main())
