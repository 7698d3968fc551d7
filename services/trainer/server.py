"""Starts the trainer: rlhf-trainer [ALGORITHM] --config FILE.toml [--resume]. The algorithm is ppo if none is named."""

import sys
from collections.abc import Sequence

from rich.console import Console

from rlhf.config import exit_on_config_error, load_config, suggestion
from rlhf.errors import ConfigError
from rlhf.logs import configure_logging
from rlhf.process import end_rank, keep_freed_memory, sleep_at_barriers
from rlhf.serving.directory import TRAINER
from services.trainer.config.online import OnlineRunConfig, PpoRunConfig
from services.trainer.trainings import ONLINE

RESUME_FLAG = "--resume"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an algorithm as configured, from its run_dir's newest checkpoint with --resume; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    resume = RESUME_FLAG in arguments
    arguments = [argument for argument in arguments if argument != RESUME_FLAG]
    with exit_on_config_error(TRAINER.command):
        named = bool(arguments) and not arguments[0].startswith("-")
        algorithm = arguments.pop(0) if named else PpoRunConfig.algorithm
        if algorithm not in ONLINE:
            raise ConfigError(f"unknown algorithm '{algorithm}'{suggestion(algorithm, ONLINE)}")
        training = ONLINE[algorithm]
        config = load_config(
            training.config_class, prog=TRAINER.command, argv=arguments, env_prefix=training.env_prefix
        )
        return end_rank(training.run_to_end(config, resume=resume, console=Console()))
    raise AssertionError("unreachable: the context manager exits")


def run_online(config: OnlineRunConfig, *, resume: bool, console: Console) -> int:
    """Runs to the end and returns the exit code: 0 finished, or stopped by TrainerService.Stop; 1 failed (the console
    says why); 128 + the signal's number if one ended it before its last step, with a checkpoint.

    Args:
        config: the run; its class decides the algorithm.
        resume: go on from the newest whole checkpoint in run_dir, or from the start if there is none.
        console: shows progress; a live table if it is a terminal.
    Raises: ConfigError if the run cannot begin as configured.
    """
    paths = [("model.path", config.model.path)]
    if isinstance(config, PpoRunConfig) and config.critic.path is not None:
        paths.append(("critic.path", config.critic.path))
    for field, path in paths:
        if not path.is_dir():
            raise ConfigError(f"{field} is '{path}': no such directory; give the folder of a checkpoint")
    # On a terminal the table shows the run; JSON lines would tear it apart.
    configure_logging("warning" if console.is_terminal else config.server.log_level, TRAINER.name)
    sleep_at_barriers()
    keep_freed_memory()
    # Torch takes seconds to import: what is wrong with the configuration is said before.
    from services.trainer.runner import run_in_process

    return run_in_process(config, resume=resume, console=console)


if __name__ == "__main__":
    sys.exit(main())
