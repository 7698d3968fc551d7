"""Starts the reference service: rlhf-reference --model.path DIR."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rlhf.config import exit_on_config_error, load_config
from rlhf.errors import ConfigError
from rlhf.process import keep_freed_memory
from rlhf.serving.directory import REFERENCE
from rlhf.serving.server import run_service
from rlhf.v1 import reference_pb2_grpc
from services.reference.config import ModelConfig, ReferenceConfig
from services.reference.core import LogprobsScorer, ReferenceCore, ReferenceMetrics
from services.reference.servicer import ReferenceServicer


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until told to stop; returns the exit code."""
    keep_freed_memory()
    with exit_on_config_error(REFERENCE.command):
        config = load_config(ReferenceConfig, prog=REFERENCE.command, argv=argv, env_prefix=REFERENCE.env_prefix)
        core = ReferenceCore(partial(build_scorer, config.model), config.limits, ReferenceMetrics())
        register = partial(reference_pb2_grpc.add_ReferenceServiceServicer_to_server, ReferenceServicer(core))
        return run_service(REFERENCE, config.server, register, core)


def build_scorer(config: ModelConfig) -> LogprobsScorer:
    """Returns the scorer. Torch takes seconds to import: only when the path is good. Raises: ConfigError."""
    if not Path(config.path).is_dir():
        raise ConfigError(f"model.path is '{config.path}': no such directory; give the folder of a Hugging Face model")
    from services.reference.scorer import load_logprobs_scorer

    return load_logprobs_scorer(config)


if __name__ == "__main__":
    sys.exit(main())
