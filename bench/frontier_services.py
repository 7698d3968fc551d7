"""The services of the frontier: started when something first needs them, and kept until the end."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from rlhf_cli.demo.run_configs import MAX_PROMPT_TOKENS
from rlhf_cli.local.services import (
    ENVIRONMENT,
    LocalServices,
    pattern_arguments,
    policy_arguments,
    reference_arguments,
    reward_arguments,
)
from rlhf_cli.local.services_file import Kind, ServiceEntry
from rlhf_cli.local.supervisor import Supervisor
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.stages import StageError

START_TIMEOUT_SECONDS = 600.0
DTYPE: Literal["bfloat16"] = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierOptions:
    """How the frontier is made."""

    folder: Path
    model: Path
    demo_run: Path | None
    """A finished demo whose pairs and reward model are taken."""
    engine: Literal["vllm", "transformers"]
    pattern: str
    """What the labeller likes."""
    seed: int
    max_new_tokens: int
    pair_prompts: int
    heldout_prompts: int
    eval_samples: int
    ppo_steps: int
    prompts_per_step: int
    dpo_epochs: int
    dpo_learning_rate: float


class FrontierServices:
    """Policy, reference, reward and the true score, on this machine; and the trainings that call them."""

    def __init__(self, options: FrontierOptions, supervisor: Supervisor, phases: Phases) -> None:
        self._options = options
        self._supervisor = supervisor
        self._local = LocalServices(supervisor, options.folder / "services.toml")
        self._phases = phases
        self._reward: ServiceEntry | None = None

    @cached_property
    def policy(self) -> ServiceEntry:
        """Where the policy is; what it serves is pushed into it."""
        limit = MAX_PROMPT_TOKENS + self._options.max_new_tokens
        engine = self._options.engine
        arguments = policy_arguments(self._options.model, engine=engine, dtype=DTYPE, max_sequence_tokens=limit)
        return self._start("policy", "policy", arguments)

    @cached_property
    def reference(self) -> ServiceEntry:
        """Where the start is served as the reference."""
        return self._start("reference", "reference", reference_arguments(self._options.model, dtype=DTYPE))

    @cached_property
    def truth(self) -> ServiceEntry:
        """Where the labeller's rule is."""
        return self._start("true-score", "reward", pattern_arguments(self._options.pattern, self._options.model))

    def reward(self, model: Path) -> ServiceEntry:
        """Returns where the reward model is; there is one, and it is trained by then."""
        if self._reward is None:
            self._reward = self._start("reward", "reward", reward_arguments(model, dtype=DTYPE))
        return self._reward

    def run_rlhf(self, arguments: list[str], *, has_server: bool) -> None:
        """Runs an rlhf command on this terminal. Raises: StageError if it fails; it has said why."""
        trainer = self._local.announce("trainer", "trainer") if has_server else None
        flags = [] if trainer is None else self._local.server_flags(trainer)
        exit_code = self._supervisor.run([sys.executable, "-m", "rlhf_cli.main", *arguments, *flags], ENVIRONMENT)
        if trainer is not None:
            self._local.withdraw(trainer)
        if exit_code != 0:
            raise StageError(f"`{shlex.join(['rlhf', *arguments])}` ended with exit code {exit_code}")

    def _start(self, name: str, kind: Kind, arguments: list[str]) -> ServiceEntry:
        entry = self._local.start(name, kind, arguments)
        with self._phases.waiting("starting") as on_wait:
            self._local.wait_ready([entry], START_TIMEOUT_SECONDS, on_wait)
        return entry


@contextmanager
def frontier_services(options: FrontierOptions, phases: Phases) -> Iterator[FrontierServices]:
    """Gives the services; all that were started are gone when the block is left, whatever ends it."""
    options.folder.mkdir(parents=True, exist_ok=True)
    with Supervisor(options.folder / "logs", phases.say) as supervisor:
        yield FrontierServices(options, supervisor, phases)
