"""The loop of offline trainings, on a model of one weight: order, normaliser, validation, resume, failures."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from rlhf.errors import ConfigError, RunError
from rlhf.learning.trained_model import TrainedModel
from services.trainer.config.offline import FitConfig, OfflineOptimizerConfig
from services.trainer.config.sections import CheckpointConfig
from services.trainer.offline.fit import FitResult, FitRun, batch_indices, fit, num_steps

TIMES = ("seconds", "tokens_per_second")


class SquareTask:
    """Example x costs |x| + 1 tokens; its loss is (w x - 2 x)^2, so w goes to 2."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self.prepared: list[int] = []
        self.before_loss = lambda: None

    def num_tokens(self, example: float) -> int:
        return int(abs(example)) + 1

    def normalizer(self, batch: Sequence[float]) -> float:
        return len(batch)

    def prepare(self, batch: Sequence[float]) -> None:
        self.prepared.append(len(batch))

    def loss(self, micro: Sequence[float], normalizer: float) -> tuple[Tensor, Mapping[str, float]]:
        self.before_loss()
        x = torch.tensor(micro)[:, None]
        errors = (self.module(x) - 2 * x).square()
        return errors.sum() / normalizer, {"count": float(len(micro)), "sum": float(x.sum())}

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"mean": sums["sum"] / sums["count"]}


EXAMPLES = [0.5, -1.0, 2.0, 3.0, -2.5, 1.5, 0.25]
TOO_LARGE = 1e30
"""Its square is no float32."""
OPTIMIZER = OfflineOptimizerConfig(learning_rate=0.1, warmup_steps=0)


def run_fit(
    run_dir: Path,
    *,
    resume: bool = False,
    training: FitConfig | None = None,
    every_steps: int = 2,
    before_loss=lambda: None,
    examples: Sequence[float] = EXAMPLES,
    heldout: Sequence[float] = (),
) -> tuple[FitResult, float]:
    """Fits the one weight, which starts as 0; returns the result and the weight."""
    training = FitConfig(epochs=3, examples_per_step=3, micro_batch_tokens=4) if training is None else training
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    task = SquareTask(module)
    task.before_loss = before_loss
    trained = TrainedModel("model", module, OPTIMIZER, total_steps=num_steps(len(examples), training))
    run = FitRun(
        title="fit",
        run_dir=run_dir,
        training=training,
        checkpoint=CheckpointConfig(every_steps=every_steps),
        console=Console(quiet=True),
        resume=resume,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    return fit(task, trained, examples, heldout, run), float(module.weight.detach())


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


class Killed(BaseException):
    """Ends the process's work where it stands, as kill -9 would."""


def kill_at_call(number: int):
    """Returns a callback that raises Killed when it is called for the number-th time."""
    calls = iter(range(1, 10_000))

    def callback() -> None:
        if next(calls) == number:
            raise Killed

    return callback


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    config = FitConfig(epochs=2, examples_per_step=3, seed=5)
    assert num_steps(7, config) == 6  # 3 + 3 + 1 examples, twice
    epochs = [[batch_indices(step, 7, config) for step in steps] for steps in (range(3), range(3, 6))]
    assert [[len(batch) for batch in epoch] for epoch in epochs] == [[3, 3, 1]] * 2
    orders = [[index for batch in epoch for index in batch] for epoch in epochs]
    assert [sorted(order) for order in orders] == [list(range(7))] * 2
    assert orders[0] != orders[1]
    assert batch_indices(1, 7, config.model_copy(update={"seed": 6})) != batch_indices(1, 7, config)


def test_the_weight_is_learned_and_every_step_is_written_down(tmp_path: Path) -> None:
    result, weight = run_fit(tmp_path, training=FitConfig(epochs=30, examples_per_step=3))
    assert (result.step, result.finished) == (90, True)
    assert weight == pytest.approx(2.0, abs=0.05)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 91))
    assert rows[2]["epoch"] == 1.0
    # The first batch under weight 0: the mean of (2 x)^2, |x| + 1 tokens each.
    batch = [EXAMPLES[index] for index in batch_indices(0, 7, FitConfig(examples_per_step=3))]
    assert rows[0]["loss"] == pytest.approx(sum(4 * x * x for x in batch) / 3)
    assert rows[0]["mean"] == pytest.approx(sum(batch) / 3)
    assert rows[0]["tokens"] == sum(int(abs(x)) + 1 for x in batch)


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    weights = [
        run_fit(tmp_path / str(tokens), training=FitConfig(epochs=2, examples_per_step=4, micro_batch_tokens=tokens))[1]
        for tokens in (1, 4, 1000)
    ]
    assert weights[0] == pytest.approx(weights[1], rel=1e-6)
    assert weights[0] == pytest.approx(weights[2], rel=1e-6)


def test_held_out_examples_are_measured_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    training = FitConfig(epochs=1, examples_per_step=2, validate_every_steps=3)
    _, weight = run_fit(tmp_path, training=training, heldout=[1.0, 3.0])
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "heldout_loss" in row] == [3, 4]
    assert rows[-1]["heldout_loss"] == pytest.approx((weight - 2) ** 2 * (1 + 9) / 2, rel=1e-5)
    assert rows[-1]["heldout_mean"] == 2.0


# 9 steps of 3, 3 and 1 examples; a budget of 4 tokens makes 2 micro-batches or so of a step, 15 in all.
@pytest.mark.parametrize("call", range(1, 16))
def test_a_run_that_is_killed_anywhere_resumes_to_the_same_bits(tmp_path: Path, call: int) -> None:
    whole, weight = run_fit(tmp_path / "whole")
    with pytest.raises(Killed):
        run_fit(tmp_path / "killed", before_loss=kill_at_call(call))
    resumed, resumed_weight = run_fit(tmp_path / "killed", resume=True)
    assert resumed_weight == weight
    assert resumed.finished
    assert whole.step == resumed.step
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")


def test_sigterm_ends_the_run_after_its_step_with_a_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def send_signal() -> None:
        if not (tmp_path / "sent").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)

    whole, weight = run_fit(tmp_path / "whole", every_steps=0)
    stopped, _ = run_fit(tmp_path / "run", every_steps=0, before_loss=send_signal)
    assert (stopped.step, stopped.finished, stopped.exit_code) == (1, False, 143)
    assert capfd.readouterr().err.startswith("stopping after this step; once more ends at once")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed, resumed_weight = run_fit(tmp_path / "run", every_steps=0, resume=True)
    assert (resumed.step, resumed_weight, resumed.exit_code) == (whole.step, weight, 0)


def test_a_loss_that_is_not_finite_ends_the_run_names_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"fit stopped at step 1: the loss is inf"):
        run_fit(tmp_path / "first", examples=[1.0, TOO_LARGE])
    assert read_metrics(tmp_path / "first") == []
    training = FitConfig(epochs=1, examples_per_step=1)
    steps = [batch_indices(step, 7, training)[0] for step in range(7)]
    examples = [TOO_LARGE if index == steps[5] else x for index, x in enumerate(EXAMPLES)]
    with pytest.raises(RunError, match=r"fit stopped at step 6: the loss is inf"):
        run_fit(tmp_path / "later", training=training, examples=examples)
    assert sorted(path.name for path in (tmp_path / "later/checkpoints").iterdir()) == ["step-000002", "step-000004"]


def test_a_run_is_not_started_over_and_not_resumed_with_other_data(tmp_path: Path) -> None:
    run_fit(tmp_path)
    with pytest.raises(ConfigError, match=r"it holds a run already, up to step-000009; go on with --resume"):
        run_fit(tmp_path)
    with pytest.raises(ConfigError, match=r"was written with examples digest \w+, this run has"):
        run_fit(tmp_path, resume=True, examples=[*EXAMPLES[1:], 9.0])
    with pytest.raises(ConfigError, match=r"was written with seed 0, this run has 1"):
        run_fit(tmp_path, resume=True, training=FitConfig(epochs=3, examples_per_step=3, seed=1))


def test_a_full_disk_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    def fill_disk() -> None:
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")  # always full

    with pytest.raises(RunError, match=r"fit stopped after step 1: .*free some space, then continue with --resume"):
        run_fit(tmp_path, before_loss=fill_disk)
