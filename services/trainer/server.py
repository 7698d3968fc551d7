"""Starts the trainer: rlhf-trainer --config FILE.toml [--resume]."""

import sys
from collections.abc import Sequence

from rich.console import Console

from rlhf_services.common.config import exit_on_config_error, load_config
from rlhf_services.common.errors import ConfigError
from rlhf_services.common.logs import configure_logging
from rlhf_services.common.memory import keep_freed_memory
from rlhf_services.common.threads import sleep_at_barriers
from rlhf_services.trainer.online_config import PpoRunConfig

RESUME_FLAG = "--resume"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs PPO as configured, from the newest checkpoint of its run_dir if --resume is given; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    resume = RESUME_FLAG in arguments
    arguments = [argument for argument in arguments if argument != RESUME_FLAG]
    with exit_on_config_error("rlhf-trainer"):
        config = load_config(PpoRunConfig, prog="rlhf-trainer", argv=arguments, env_prefix="RLHF_TRAINER")
        return run_ppo(config, resume=resume, console=Console())
    raise AssertionError("unreachable: the context manager exits")


def run_ppo(config: PpoRunConfig, *, resume: bool, console: Console) -> int:
    """Runs PPO to its end and returns the exit code: 0 finished or stopped as asked, 1 failed (the console says why).

    Args:
        config: the run.
        resume: go on from the newest whole checkpoint in run_dir, or from the start if there is none.
        console: shows progress; a live table if it is a terminal.
    Raises: ConfigError if the run cannot begin as configured.
    """
    for field, path in (("policy_path", config.models.policy_path), ("critic_path", config.critic.path)):
        if not path.is_dir():
            raise ConfigError(f"models.{field} is '{path}': no such directory; give the folder of a checkpoint")
    # On a terminal the table tells the story; JSON lines would tear it apart.
    configure_logging("warning" if console.is_terminal else config.server.log_level, "trainer")
    sleep_at_barriers()
    keep_freed_memory()
    # Torch takes seconds to import: what is wrong with the configuration is said before.
    from rlhf_services.trainer.runner import run_in_process

    return run_in_process(config, resume=resume, console=console)


if __name__ == "__main__":
    sys.exit(main())
