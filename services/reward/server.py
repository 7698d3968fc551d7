"""Starts the reward service: rlhf-reward --scorer.kind model --scorer.path DIR."""

from collections.abc import Sequence
from functools import partial

from rlhf_services.common.config import exit_on_config_error, load_config
from rlhf_services.common.memory import keep_freed_memory
from rlhf_services.common.serving import run_service
from rlhf_services.reward.config import RewardConfig
from rlhf_services.reward.core import RewardCore
from rlhf_services.reward.factory import build_scorer
from rlhf_services.reward.metrics import RewardMetrics
from rlhf_services.reward.servicer import RewardServicer
from rlhf_services.v1 import reward_pb2_grpc

FULL_NAME = "rlhf_services.v1.RewardService"


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until told to stop; returns the exit code."""
    keep_freed_memory()
    with exit_on_config_error("rlhf-reward"):
        config = load_config(RewardConfig, prog="rlhf-reward", argv=argv, env_prefix="RLHF_REWARD")
        core = RewardCore(partial(build_scorer, config.scorer), config.limits, RewardMetrics())
        register = partial(reward_pb2_grpc.add_RewardServiceServicer_to_server, RewardServicer(core))
        return run_service("reward", FULL_NAME, config.server, register, core)
