"""The services that stages work with, on this machine or elsewhere, and `rlhf` commands that run on this terminal."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_cli.local.services import (
    ENVIRONMENT,
    Dtype,
    Kind,
    LocalServices,
    ServiceEntry,
    ensemble_arguments,
    pattern_arguments,
    policy_arguments,
    reference_arguments,
    reward_arguments,
)
from rlhf_cli.local.supervisor import Supervisor
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.stages import StageError


class PipelineServices:
    """Gives stages the services they ask for. Ask for all that a stage needs, then wait_ready().

    What has no address in the configuration is started on this machine, under the supervisor; what runs already with
    the same flags is given again. RUN_DIR/services.toml says where all of them are.
    """

    def __init__(self, config: PipelineConfig, supervisor: Supervisor, phases: Phases) -> None:
        self._config = config
        self._supervisor = supervisor
        self._phases = phases
        self.file = config.run_dir / "services.toml"
        """Where all of them are."""
        self._local = LocalServices(supervisor, self.file)
        self._running: dict[str, tuple[ServiceEntry, list[str]]] = {}
        self._starting: list[ServiceEntry] = []

    def policies(self, model: Path) -> list[str]:
        """Returns where policies are: those given, whatever they serve, or one started with the model."""
        given = self._config.services.policy_targets
        return list(given) if given else [self.policy("policy", model)]

    def policy(self, name: str, model: Path, *, dtype: Dtype | None = None) -> str:
        """Returns where a policy was started with the model, in the configuration's element type or in `dtype`."""
        services = self._config.services
        limit = self._config.prompts.max_prompt_tokens + self._config.sampling.max_new_tokens
        dtype = dtype or services.dtype
        arguments = policy_arguments(model, engine=services.engine, dtype=dtype, max_sequence_tokens=limit)
        return self._start(name, "policy", arguments)

    def reference(self, model: Path) -> str:
        """Returns where the reference is: the one given, or one started with the model."""
        services = self._config.services
        if services.reference_target is not None:
            return services.reference_target
        return self._start("reference", "reference", reference_arguments(model, dtype=services.dtype))

    def reward(self, model: Path | None) -> str | None:
        """Returns where the reward of training is: given, or started with the model; None if there is neither."""
        services = self._config.services
        if services.reward_target is not None or model is None:
            return services.reward_target
        members = ensemble_members(model)
        if not members:
            return self._start("reward", "reward", reward_arguments(model, dtype=services.dtype))
        arguments = ensemble_arguments(
            members, combine=services.reward_combine, std_coef=services.reward_std_coef, dtype=services.dtype
        )
        return self._start("reward", "reward", arguments)

    def rule(self, pattern: str, tokenizer: Path) -> str:
        """Returns where a reward service of the simulated labeller's rule was started."""
        return self._start("true-score", "reward", pattern_arguments(pattern, tokenizer))

    def wait_ready(self) -> None:
        """Returns when what was started can serve. Raises: ServiceDiedError."""
        if self._starting:
            with self._phases.waiting("starting") as on_wait:
                self._local.wait_ready(self._starting, self._config.services.start_timeout_seconds, on_wait)
            self._starting.clear()

    def end_stage(self) -> None:
        """Stops what was started, unless the configuration says to keep it for the next stages."""
        if not self._config.services.keep:
            self._end(list(self._running))

    def run_rlhf(self, arguments: Sequence[str], *, has_server: bool) -> None:
        """Runs an rlhf command on this terminal.

        Args:
            has_server: whether it has a service of its own, which is then put where it is in nobody's way.
        Raises: StageError if it fails; it has said why.
        """
        command = shlex.join(["rlhf", *arguments])
        trainer = self._local.announce("trainer", "trainer") if has_server else None
        flags = [] if trainer is None else self._local.server_flags(trainer)
        self._phases.say(f"$ {command}", style="cyan")
        exit_code = self._supervisor.run([sys.executable, "-m", "rlhf_cli.main", *arguments, *flags], ENVIRONMENT)
        if trainer is not None:
            self._local.withdraw(trainer)
        if exit_code != 0:
            raise StageError(
                f"`{command}` ended with exit code {exit_code}; it has said why above, and "
                f"the services' logs are in {self._supervisor.log_path('policy').parent}"
            )

    def _start(self, name: str, kind: Kind, arguments: list[str]) -> str:
        if name in self._running:
            entry, before = self._running[name]
            if before == arguments:
                return entry.target
            self._end([name])
        entry = self._local.start(name, kind, arguments)
        self._running[name] = (entry, arguments)
        self._starting.append(entry)
        return entry.target

    def _end(self, names: Sequence[str]) -> None:
        self._local.end(*(self._running.pop(name)[0] for name in names))


def ensemble_members(model: Path) -> list[Path]:
    """Returns the reward models in the folder of an ensemble; none if the folder is a model itself."""
    if (model / "config.json").exists():
        return []
    return sorted(path.parent for path in model.glob("*/config.json"))
