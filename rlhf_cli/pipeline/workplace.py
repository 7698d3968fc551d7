"""What stages work with: the services they need, on this machine or elsewhere, and `rlhf` commands on this terminal."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_cli.local.services import (
    ENVIRONMENT,
    LocalServices,
    ensemble_arguments,
    pattern_arguments,
    policy_arguments,
    reference_arguments,
    reward_arguments,
)
from rlhf_cli.local.services_file import Kind, ServiceEntry
from rlhf_cli.local.supervisor import Supervisor
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.stages import StageError


@dataclass(slots=True)
class StageServices:
    """The services of one stage. Ask for all of them, then wait_ready()."""

    config: PipelineConfig
    local: LocalServices
    supervisor: Supervisor
    phases: Phases
    _started: list[ServiceEntry] = field(default_factory=list)

    def policies(self, model: Path) -> list[str]:
        """Returns where policies are: those given, whatever they serve, or one started with the model."""
        services = self.config.services
        if services.policy_targets:
            return list(services.policy_targets)
        limit = self.config.prompts.max_prompt_tokens + self.config.sampling.max_new_tokens
        arguments = policy_arguments(model, engine=services.engine, dtype=services.dtype, max_sequence_tokens=limit)
        return [self._start("policy", "policy", arguments)]

    def reference(self, model: Path) -> str:
        """Returns where the reference is: the one given, or one started with the model."""
        services = self.config.services
        if services.reference_target is not None:
            return services.reference_target
        return self._start("reference", "reference", reference_arguments(model, dtype=services.dtype))

    def reward(self, model: Path | None) -> str | None:
        """Returns where the reward of training is: given, or started with the model; None if there is neither."""
        services = self.config.services
        if services.reward_target is not None or model is None:
            return services.reward_target
        members = ensemble_members(model)
        if not members:
            return self._start("reward", "reward", reward_arguments(model, dtype=services.dtype))
        arguments = ensemble_arguments(
            members, combine=services.reward_combine, std_coef=services.reward_std_coef, dtype=services.dtype
        )
        return self._start("reward", "reward", arguments)

    def rule(self, name: str, pattern: str, tokenizer: Path) -> str:
        """Returns where a reward service of the simulated labeller's rule was started."""
        return self._start(name, "reward", pattern_arguments(pattern, tokenizer))

    def wait_ready(self) -> None:
        """Returns when what was started can serve. Raises: ServiceDiedError."""
        if self._started:
            with self.phases.waiting("starting") as on_wait:
                self.local.wait_ready(self._started, self.config.services.start_timeout_seconds, on_wait)

    def run_rlhf(self, arguments: Sequence[str], *, has_server: bool) -> None:
        """Runs an rlhf command on this terminal.

        Args:
            has_server: whether it has a service of its own, which is then put where it is in nobody's way.
        Raises: StageError if it fails; it has said why.
        """
        flags: list[str] = []
        if has_server:
            flags = self.local.server_flags(self.local.announce("trainer", "trainer"))
        self.phases.say(f"$ {shlex.join(['rlhf', *arguments])}", style="cyan")
        exit_code = self.supervisor.run([sys.executable, "-m", "rlhf_cli.main", *arguments, *flags], ENVIRONMENT)
        if exit_code != 0:
            raise StageError(
                f"`{shlex.join(['rlhf', *arguments])}` ended with exit code {exit_code}; it has said why above, and "
                f"the services' logs are in {self.supervisor.log_path('policy').parent}"
            )

    def _start(self, name: str, kind: Kind, arguments: Sequence[str]) -> str:
        entry = self.local.start(name, kind, arguments)
        self._started.append(entry)
        return entry.target


def ensemble_members(model: Path) -> list[Path]:
    """Returns the reward models in the folder of an ensemble; none if the folder is a model itself."""
    if (model / "config.json").exists():
        return []
    return sorted(path.parent for path in model.glob("*/config.json"))


@contextmanager
def stage_services(config: PipelineConfig, folder: Path, phases: Phases) -> Iterator[StageServices]:
    """Gives a stage its services; those that were started are gone when the block is left, whatever ends it.

    Their logs are in folder/logs, and RUN_DIR/services.toml says where they are meanwhile.
    """
    with Supervisor(folder / "logs", phases.say) as supervisor:
        yield StageServices(config, LocalServices(supervisor, config.run_dir / "services.toml"), supervisor, phases)
