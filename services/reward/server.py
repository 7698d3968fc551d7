"""Starts the reward service: rlhf-reward --scorer.kind model --scorer.path DIR."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

from rlhf.config import exit_on_config_error, load_config
from rlhf.process import keep_freed_memory
from rlhf.serving.http.side import HttpGateway
from rlhf.serving.serving import run_service
from rlhf.v1 import reward_pb2_grpc
from services.reward.config import RewardConfig
from services.reward.core import RewardCore
from services.reward.loading import ModelLoader
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import reloaded
from services.reward.scorers.factory import build_scorer
from services.reward.servicer import RewardServicer
from services.reward.watch.watch import RewardWatch

FULL_NAME = "rlhf.v1.RewardService"

SCOPE_OF_METHOD: Mapping[str, str] = MappingProxyType(
    {"Score": "score", "Compare": "score", "GetModel": "score", "GetReport": "score", "LoadModel": "admin"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until told to stop; returns the exit code."""
    keep_freed_memory()
    with exit_on_config_error("rlhf-reward"):
        config = load_config(RewardConfig, prog="rlhf-reward", argv=argv, env_prefix="RLHF_REWARD")
        core = make_core(config, RewardMetrics())
        register = partial(reward_pb2_grpc.add_RewardServiceServicer_to_server, RewardServicer(core))
        sides = [HttpGateway(core, config.http, config.server.host)] if config.http.enabled else []
        return run_service(
            "reward", FULL_NAME, config.server, register, core, sides=sides, scope_of_method=SCOPE_OF_METHOD
        )


def make_core(config: RewardConfig, metrics: RewardMetrics) -> RewardCore:
    """Returns what serves the configured scorer, still to be loaded."""
    heldout = None if config.watch.heldout is None else partial(build_scorer, config.watch.heldout)
    watch = RewardWatch(config.watch, metrics, heldout)
    loader = ModelLoader(config.scorer, config.models, build_scorer, reloaded)
    return RewardCore(partial(build_scorer, config.scorer), config.limits, metrics, watch, loader)
