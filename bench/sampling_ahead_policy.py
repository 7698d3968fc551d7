"""A policy service whose every token takes a while: python bench/sampling_ahead_policy.py SECONDS FLAGS...

It sleeps, so that the time is the same whatever else runs on the machine.
"""

import sys
import time

from rlhf.config import load_config
from rlhf.serving.directory import POLICY
from rlhf.serving.server import run_service
from services.policy.config import PolicyConfig
from services.policy.hf_engine import HfEngine
from services.policy.server import PolicyBackend


class SlowEngine(HfEngine):
    """The transformers engine, with a pause before each token of the batch. Weights are swapped between tokens."""

    seconds_per_token = 0.0

    def _forward(self):  # type: ignore[no-untyped-def]
        time.sleep(self.seconds_per_token)
        return super()._forward()


def main() -> int:
    """Serve until told to end; returns the exit code."""
    SlowEngine.seconds_per_token = float(sys.argv[1])
    config = load_config(PolicyConfig, prog="async_policy", argv=sys.argv[2:], env_prefix="RLHF_POLICY")
    backend = PolicyBackend(SlowEngine(config), config)
    return run_service(POLICY, config.server, backend.register, backend)


if __name__ == "__main__":
    sys.exit(main())
