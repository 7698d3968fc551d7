"""Starts the reward service: rlhf-reward --scorer.kind model --scorer.path DIR."""

import sys
from collections.abc import Sequence
from functools import partial

from rlhf.config import exit_on_config_error, load_config
from rlhf.process import keep_freed_memory
from rlhf.serving.config import HttpConfig
from rlhf.serving.directory import REWARD
from rlhf.serving.http.app import HttpServer
from rlhf.serving.server import run_service
from rlhf.v1 import reward_pb2_grpc
from services.reward.config import RewardConfig
from services.reward.core import RewardCore
from services.reward.http import DESCRIPTION, TITLE, reward_routes
from services.reward.loading import ModelLoader
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import build_scorer, reloaded
from services.reward.servicer import RewardServicer
from services.reward.watch.watch import RewardWatch


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until told to stop; returns the exit code."""
    keep_freed_memory()
    with exit_on_config_error(REWARD.command):
        config = load_config(RewardConfig, prog=REWARD.command, argv=argv, env_prefix=REWARD.env_prefix)
        core = make_core(config, RewardMetrics())
        register = partial(reward_pb2_grpc.add_RewardServiceServicer_to_server, RewardServicer(core))
        sides = [make_http_server(core, config.http, config.server.host)] if config.http.enabled else []
        return run_service(REWARD, config.server, register, core, sides=sides)


def make_http_server(core: RewardCore, config: HttpConfig, default_host: str) -> HttpServer:
    """Returns what serves the core over HTTP, still to be started."""
    return HttpServer(TITLE, DESCRIPTION, reward_routes(core), config, default_host)


def make_core(config: RewardConfig, metrics: RewardMetrics) -> RewardCore:
    """Returns what serves the configured scorer, still to be loaded."""
    heldout = None if config.watch.heldout is None else partial(build_scorer, config.watch.heldout)
    watch = RewardWatch(config.watch, metrics.watch, heldout)
    loader = ModelLoader(config.scorer, config.models, build_scorer, reloaded)
    return RewardCore(partial(build_scorer, config.scorer), config.limits, metrics, watch, loader)


if __name__ == "__main__":
    sys.exit(main())
