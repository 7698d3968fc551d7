"""Kill -9 at any moment, --resume, and the run ends with the very bits of one that nobody disturbed.

The services are real (transformers engine, each item computed by itself) and live in this process; the trainer is a
process of its own. When to kill is decided from outside, by what the run has left on the disk and at the services.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.reward.scorers.config import scorer_config
from tests.support.forked import Command
from tests.support.real_services import Targets, serving

NUM_STEPS = 10
CHECKPOINT_EVERY = 2

CONFIG = f"""
run_dir = "{{run_dir}}"

[model]
path = "{{policy}}"
dtype = "float32"
device = "cpu"

[prompts]
path = "{{prompts}}"

[services]
policy_targets = ["{{targets.policy}}"]
reward_target = "{{targets.reward}}"
reference_target = "{{targets.reference}}"
wait_for_services_seconds = 60

[sampling]
max_new_tokens = 8

[training]
steps = {NUM_STEPS}
prompts_per_step = 4
group_size = 2
epochs = 2
minibatches = 2
max_dropped_fraction = 0.5
max_policy_lag = {{lag}}

[optimizer]
learning_rate = 1e-3
warmup_steps = 4
final_learning_rate_fraction = 0.1

[checkpoint]
every_steps = {CHECKPOINT_EVERY}
keep_last = 2

[server]
host = "127.0.0.1"
port = 0
metrics_port = 0
drain_seconds = 0
log_level = "warning"
"""

SAMPLE, ACCEPTED = '"kind": "sample"', '"kind": "accepted"'
PPO = """
[critic]
path = "{critic}"

[kl]
target = 2.0

[critic_optimizer]
learning_rate = 3e-3
"""

# Rewards are 0 or 1, so about half of the groups are uniform, and steps sample more than once.
GRPO = """
[groups]
drop_uniform = true

[reward]
normalize = "running"

[ptx]
path = "{demonstrations}"
coef = 0.1
examples_per_minibatch = 2
"""

PHASES = ("pushing", "sampling", "training", "checkpointing")


@dataclass(frozen=True, order=True)
class Moment:
    """When to kill: in a phase of a step."""

    step: int
    phase: int
    """Index in PHASES, which is their order in a step."""


def all_moments() -> list[Moment]:
    """Returns every moment of a run that is told apart from outside, in order."""
    return [
        Moment(step, phase)
        for step in range(1, NUM_STEPS)
        for phase, name in enumerate(PHASES)
        if name != "checkpointing" or step % CHECKPOINT_EVERY == 0
    ]


@dataclass
class Run:
    """A run's files, and its trainer process."""

    algorithm: str
    folder: Path
    config: Path
    hits: list[str] = field(default_factory=list)
    """The phases in which it was really killed."""

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(self) -> Command:
        flags = ("--config", self.config, "--resume")
        return Command("services.trainer.server", self.algorithm, *flags, output=self.folder / "output.txt")

    def finish(self) -> None:
        """Runs to the end, which must be a good one."""
        process = self.start()
        try:
            assert process.wait(240) == 0, (self.folder / "output.txt").read_text()[-4000:]
        finally:
            process.kill()

    def rows(self) -> list[dict[str, float]]:
        path = self.run_dir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def num_rows(self) -> int:
        return len(self.rows()) if (self.run_dir / "metrics.jsonl").exists() else 0

    def journaled(self, step: int) -> str:
        path = self.run_dir / "journal" / f"step-{step:06d}.rank-0.jsonl"
        return path.read_text() if path.exists() else ""

    def reached(self, moment: Moment) -> bool:
        """Whether the run is in the phase now."""
        journaled = self.journaled(moment.step)
        match PHASES[moment.phase]:
            case "pushing":
                return is_push_under_way() and self.num_rows() == moment.step - 1
            case "sampling":
                return SAMPLE in journaled and ACCEPTED not in journaled
            case "training":
                return ACCEPTED in journaled and self.num_rows() < moment.step
            case _:
                return any((self.run_dir / "checkpoints").glob(f".step-{moment.step:06d}.tmp"))

    def passed(self, moment: Moment) -> bool:
        """Whether the phase is over."""
        match PHASES[moment.phase]:
            case "pushing":
                return SAMPLE in self.journaled(moment.step) or self.num_rows() >= moment.step
            case "sampling":
                return ACCEPTED in self.journaled(moment.step) or self.num_rows() >= moment.step
            case "training":
                return self.num_rows() >= moment.step
            case _:
                return (self.run_dir / "checkpoints" / f"step-{moment.step:06d}" / "state.json").exists()

    def start_and_kill(self, moment: Moment, delay_seconds: float) -> None:
        """Runs until the moment, or until it is missed, and kills."""
        process = self.start()
        try:
            wait_until(lambda: self.reached(moment) or self.passed(moment) or process.poll() is not None)
            hit = self.reached(moment)
            time.sleep(delay_seconds)
            assert process.poll() is None, (self.folder / "output.txt").read_text()[-4000:]
        finally:
            process.kill()
            process.wait()
        self.hits.append(PHASES[moment.phase] if hit else "another")


def is_push_under_way() -> bool:
    """Whether the policy service, which lives in this process, holds weights that it has not swapped in yet."""
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if "rlhf-weights" in str(descriptor.readlink()):
                return True
        except OSError:
            continue  # it was closed meanwhile
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {seconds} s"
        time.sleep(0.001)


def make_run(algorithm: str, folder: Path, policy: Path, critic: Path, targets: Targets, *, lag: int = 0) -> Run:
    folder.mkdir()
    prompts, demonstrations, config = (folder / name for name in ("prompts.jsonl", "demonstrations.jsonl", "run.toml"))
    words = ("a", "bc", "def", "ghij", "k")
    prompts.write_text("".join(json.dumps({"prompt": f"say {word}"}) + "\n" for word in words))
    rows = [{"prompt": f"say {word}", "completion": word} for word in words]
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = CONFIG + {"ppo": PPO, "grpo": GRPO}[algorithm]
    values = {
        "lag": lag,
        "run_dir": folder / "run",
        "policy": policy,
        "critic": critic,
        "prompts": prompts,
        "targets": targets,
    }
    config.write_text(template.format(**values, demonstrations=demonstrations))
    return Run(algorithm, folder, config)


def timeless(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Returns what of the metrics is no time, and says nothing of pushes: a replay needs none."""
    others = ("_seconds", "_per_second", "_idle_fraction")
    return [
        {name: row[name] for name in row if not name.endswith(others) and not name.startswith("fleet_push_")}
        for row in rows
    ]


def require_equal(disturbed: Run, undisturbed: Run) -> None:
    """Compares all that a run leaves: metrics but for times, the final policy, and the last checkpoint's tensors."""

    assert timeless(disturbed.rows()) == timeless(undisturbed.rows())
    assert [row["step"] for row in undisturbed.rows()] == list(range(1, NUM_STEPS + 1))
    tensors = sorted(path.relative_to(undisturbed.run_dir) for path in undisturbed.run_dir.rglob("*.safetensors"))
    assert any(path.parts[0] == "final" for path in tensors)
    assert any(path.parts[1] == f"step-{NUM_STEPS:06d}" for path in tensors)
    for path in tensors:
        assert (disturbed.run_dir / path).read_bytes() == (undisturbed.run_dir / path).read_bytes(), path


def kill_and_compare(moments: list[Moment], chance: random.Random, disturbed: Run, undisturbed: Run) -> None:
    """Kills the one run at each of the moments that it has not passed by then, ends both, and compares."""
    undisturbed.finish()
    for moment in moments:
        if disturbed.passed(moment):
            moment = next(each for each in all_moments() if each > moment and not disturbed.passed(each))
        disturbed.start_and_kill(moment, chance.uniform(0.0, 0.02))
    disturbed.finish()
    require_equal(disturbed, undisturbed)


def test_a_run_killed_in_every_phase_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path
) -> None:
    scorer = scorer_config(kind="model", path=str(tiny_reward_path), dtype="float32", device="cpu")
    with serving(tiny_model_path, scorer, single_items=True) as targets:
        disturbed, undisturbed = (
            make_run("ppo", tmp_path / name, tiny_model_path, tiny_reward_path, targets) for name in ("one", "other")
        )
        moments = [Moment(1, 1), Moment(3, 2), Moment(5, 0), Moment(8, 3)]
        kill_and_compare(moments, random.Random(0), disturbed, undisturbed)
    assert disturbed.hits[:2] == ["sampling", "training"]  # the other two are over within milliseconds


def test_a_killed_run_that_samples_ahead_takes_its_accepted_steps_again_bit_by_bit(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path
) -> None:
    """What was in flight at a kill is sampled anew, perhaps by other versions; what was accepted is what it was."""
    scorer = scorer_config(kind="model", path=str(tiny_reward_path), dtype="float32", device="cpu")
    with serving(tiny_model_path, scorer, single_items=True) as targets:
        run = make_run("ppo", tmp_path / "ahead", tiny_model_path, tiny_reward_path, targets, lag=1)
        taken: dict[float, dict[str, float]] = {}
        # Checkpoints are written after even steps: killed while 4 or 6 is trained, the step before is taken again.
        for moment in (Moment(2, 1), Moment(4, 2), Moment(6, 2)):
            run.start_and_kill(moment, 0.0)
            taken |= {row["step"]: row for row in timeless(run.rows())}
        run.finish()
    rows = timeless(run.rows())
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert {3, 5} <= taken.keys()
    assert [row for row in rows if row["step"] in taken] == [taken[step] for step in sorted(taken)]
    assert rows[0]["policy_lag_max"] == 0
    assert all(row["policy_lag_max"] <= 1 for row in rows)
    assert any(row["policy_lag_mean"] > 0 for row in rows)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_twenty_kills_at_random_moments_leave_no_trace(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path, algorithm: str
) -> None:
    scorer = scorer_config(kind="model", path=str(tiny_reward_path), dtype="float32", device="cpu")
    if algorithm == "grpo":
        scorer = scorer_config(kind="pattern", pattern="[a-z]", tokenizer=str(tiny_model_path))
    with serving(tiny_model_path, scorer, single_items=True) as targets:
        disturbed, undisturbed = (
            make_run(algorithm, tmp_path / name, tiny_model_path, tiny_reward_path, targets)
            for name in ("one", "other")
        )
        chance = random.Random(20)
        kill_and_compare(sorted(chance.sample(all_moments(), 20)), chance, disturbed, undisturbed)
    assert set(PHASES) <= set(disturbed.hits), disturbed.hits
    assert len(disturbed.hits) == 20
    if algorithm == "grpo":
        assert sum(row["uniform_groups"] for row in undisturbed.rows()) > 0
