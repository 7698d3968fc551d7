"""What the demo concludes and writes: the verdict by hand, the files it makes, and the report."""

import json
import tomllib
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.config import load_values
from rlhf_cli.demo.demo import NUM_PHASES, QUICK, SEEDS, demo_values
from rlhf_cli.demo.report import REPORT_FILE, write_report
from rlhf_cli.demo.results import CheckpointCheck, DemoResults, show, verdict
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.labelling import SHORT_AND_FINISHED
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.pipeline import Pipeline, Selection
from rlhf_cli.pipeline.stages import Stage
from services.trainer.evaluation.evaluate import Evaluation, EvaluationRow, summarise
from services.trainer.evaluation.report import read_evaluations, write_evaluations
from services.trainer.offline.reward_model.report import RewardModelReport
from services.trainer.telemetry.step import STEP_METRICS
from tests.support.paths import ROOT

REPORT = RewardModelReport(
    num_train_prompts=30,
    num_train_pairs=30,
    num_heldout_pairs=10,
    num_undecided_pairs=0,
    skipped={},
    train_loss=0.5,
    train_accuracy=0.7,
    heldout_accuracy=0.7,
    heldout_accuracy_low=0.4,
    heldout_accuracy_high=0.9,
    calibration_error=0.1,
    length_correlation=0.1,
    length_rank_correlation=0.1,
    members=[],
    ensemble=None,
    heldout=None,
    seconds=12.0,
)


def make_evaluation(true_scores: list[float]) -> Evaluation:
    rows = [
        EvaluationRow(
            prompt_index=index,
            prompt=f"prompt {index}",
            completion=f"a <completion> of {index}",
            rewards={"true": score, "reward": 2 * score},
            kl=0.5,
            num_tokens=4,
            is_stopped=True,
            distinct_2=1.0,
            repeated_ngrams=None,
        )
        for index, score in enumerate(true_scores)
    ]
    return Evaluation(rows=rows, summary=summarise(rows), dropped={})


def make_results(before: list[float], after: list[float]) -> DemoResults:
    return DemoResults(
        before=make_evaluation(before),
        after=make_evaluation(after),
        reward_model=REPORT,
        check=CheckpointCheck(digests_equal=True, num_prompts=8, num_equal=8),
        phase_seconds={"Sample": 60.0, "PPO": 240.0},
        checkpoint=Path("run/ppo/final"),
    )


def test_an_improvement_must_exceed_both_half_widths_together() -> None:
    # Two prompts at m - d and m + d: variance 2 / 1 * (d^2 + d^2) / 4 = d^2, so the half-width is 1.96 d.
    # d = 0.1 on both sides: the sum of the half-widths is 0.392.
    assert make_results([-0.1, 0.1], [0.3, 0.5]).improved
    assert not make_results([-0.1, 0.1], [0.28, 0.48]).improved
    assert "rose by +0.400" in verdict(make_results([-0.1, 0.1], [0.3, 0.5]))
    assert "not more than both" in verdict(make_results([-0.1, 0.1], [0.28, 0.48]))


def test_the_table_has_each_measure_with_its_interval_and_change() -> None:
    rows = {row.name: row for row in make_results([-0.1, 0.1], [0.3, 0.5]).measures()}
    assert list(rows) == ["reward/true", "reward/reward", "kl", "num_tokens", "distinct_2"]
    assert rows["reward/true"].before_text == "+0.000 ± 0.196"
    assert (rows["reward/true"].after_text, rows["reward/true"].change_text) == ("+0.400 ± 0.196", "+0.400")
    assert (rows["num_tokens"].before_text, rows["num_tokens"].change_text) == ("4.0 ± 0.0", "+0.0")


def test_the_terminal_shows_completions_as_they_are_even_with_brackets() -> None:
    console = Console(width=140, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    results = make_results([0.0, 0.1], [0.3, 0.5])
    show(results, console)
    text = console.export_text()
    assert "a <completion> of 0" in text
    assert "[+0.30]" in text
    assert "300" in text  # seconds of all phases


def test_the_numbers_are_written_as_json(tmp_path: Path) -> None:
    make_results([-0.1, 0.1], [0.3, 0.5]).write_json(tmp_path / "results.json")
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["improved"] is True
    assert numbers["measures"]["reward/true"]["after"]["mean"] == pytest.approx(0.4)
    assert numbers["checkpoint_check"]["num_equal"] == 8
    assert numbers["win_rates"]["true"]["rate"]["mean"] == 1.0


def test_evaluations_that_were_written_are_read_back(tmp_path: Path) -> None:
    evaluations = {"start": make_evaluation([0.0, 0.1]), "ppo": make_evaluation([0.3, 0.5])}
    write_evaluations(tmp_path, evaluations, {})
    assert read_evaluations(tmp_path) == evaluations


class TagCounter(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.num_svgs = 0
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_svgs += tag == "svg"
        if tag in ("main", "table", "svg"):
            self.open.append(tag)
        self.links += [
            str(value) for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")
        ]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("main", "table", "svg"):
            assert self.open.pop() == tag


def test_the_report_is_one_file_with_curves_and_escaped_samples(tmp_path: Path) -> None:
    config = load_values(PipelineConfig, demo_values({"run_dir": str(tmp_path)}), "demo.toml")
    for folder, row in (
        (tmp_path / "ppo/run", dict.fromkeys(STEP_METRICS, 1.0)),
        (tmp_path / "reward_model/run", {"loss": 0.5, "accuracy": 0.7}),
    ):
        folder.mkdir(parents=True)
        lines = [json.dumps({"step": step, **row}) for step in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_report(config, make_results([-0.1, 0.1], [0.3, 0.5]))
    html = (tmp_path / REPORT_FILE).read_text()
    assert "a &lt;completion&gt; of 0" in html
    assert "a <completion>" not in html
    assert "rose by +0.400" in html
    assert "100% ± 0% of the pairs by the true score" in html
    page = TagCounter()
    page.feed(html)
    assert page.num_svgs == 10
    assert page.links == []  # nothing is loaded from elsewhere


def plan_of(changes: dict[str, object], tmp_path: Path) -> dict[str, Stage]:
    """Returns the demo's stages by name; a folder stands for the model, and nothing is started."""
    (tmp_path / "model").mkdir(exist_ok=True)
    values = demo_values({**changes, "run_dir": str(tmp_path / "run"), "model": str(tmp_path / "model")})
    config = load_values(PipelineConfig, values, "demo.toml")
    pipeline = Pipeline(config, Selection(), Phases(Console(quiet=True)), source="demo.toml")
    return {stage.name: stage for stage in pipeline.stages}


def test_the_example_is_what_the_demo_runs() -> None:
    shipped = files("rlhf_cli.demo").joinpath("demo.toml").read_text(encoding="utf-8")
    assert (ROOT / "examples/demo.toml").read_text(encoding="utf-8") == shipped
    for name in ("path", "heldout_path"):  # what lies beside the code is what the example names
        assert Path(demo_values()["prompts"][name]) == ROOT / tomllib.loads(shipped)["prompts"][name]


def test_the_demo_is_a_pipeline_with_as_many_phases_as_it_says(tmp_path: Path) -> None:
    stages = plan_of({}, tmp_path)
    assert list(stages) == ["sample", "label", "reward_model", "ppo", "evaluate", "export"]
    assert len(stages) + 3 == NUM_PHASES
    assert stages["ppo"].title == "28 steps against the reward"
    assert stages["evaluate"].settings["rule"] == SHORT_AND_FINISHED


def test_a_quick_demo_and_another_seed_change_only_what_they_say(tmp_path: Path) -> None:
    usual, quick = plan_of({}, tmp_path), plan_of({**QUICK}, tmp_path)
    assert quick["reward_model"].settings == usual["reward_model"].settings
    changed = {
        name: (usual["ppo"].settings[name], value)
        for name, value in quick["ppo"].settings.items()
        if usual["ppo"].settings[name] != value
    }
    assert changed == {"training.steps": (28, 3), "training.prompts_per_step": (24, 16)}
    seeded = plan_of(dict.fromkeys(SEEDS, 7), tmp_path)
    assert all(stage.settings != usual[name].settings for name, stage in seeded.items() if name != "export")
