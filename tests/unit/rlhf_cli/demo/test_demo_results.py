"""What the demo concludes and writes: the verdict by hand, the files it makes, and the report."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.config import load_toml
from rlhf.data.preferences import load_preferences
from rlhf.data.prompts import PromptItem
from rlhf.rollout import Rollout
from rlhf.toml_files import to_toml, write_config
from rlhf_cli.demo.options import DemoOptions
from rlhf_cli.demo.report import write_report
from rlhf_cli.demo.results import CheckpointCheck, DemoResults, show, verdict
from rlhf_cli.demo.run_configs import ppo_config, reward_model_config
from rlhf_cli.local.services_file import ServiceEntry
from rlhf_cli.pipeline.labelling import with_texts, write_labelled_pairs
from services.trainer.config.offline import RewardModelRunConfig
from services.trainer.config.online import PpoRunConfig
from services.trainer.evaluation.evaluate import Evaluation, EvaluationRow, summarise
from services.trainer.offline.reward_model.report import RewardModelReport
from services.trainer.telemetry.step_metrics import STEP_METRICS
from tests.support.tiny_model import make_tiny_tokenizer

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
    options = DemoOptions(run_dir=tmp_path)
    for folder, row in (
        (options.ppo_run_dir, dict.fromkeys(STEP_METRICS, 1.0)),
        (options.reward_run_dir, {"loss": 0.5, "accuracy": 0.7}),
    ):
        folder.mkdir()
        lines = [json.dumps({"step": step, **row}) for step in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_report(options, make_results([-0.1, 0.1], [0.3, 0.5]))
    html = options.report_file.read_text()
    assert "a &lt;completion&gt; of 0" in html
    assert "a <completion>" not in html
    assert "rose by +0.400" in html
    page = TagCounter()
    page.feed(html)
    assert page.num_svgs == 10
    assert page.links == []  # nothing is loaded from elsewhere


SERVICES = {kind: ServiceEntry(name=kind, kind=kind, target=f"127.0.0.1:{port}") for port, kind in enumerate(
    ("policy", "reward", "reference"), start=1
)}  # fmt: skip


def test_the_configurations_that_are_written_read_back_equal(tmp_path: Path) -> None:
    options = DemoOptions(run_dir=tmp_path, steps=21, kl_coef=0.01)
    ppo = ppo_config(options, tmp_path / 'mo"del', **SERVICES)
    reward_model = reward_model_config(options, tmp_path)
    write_config(tmp_path / "ppo.toml", ppo)
    write_config(tmp_path / "reward_model.toml", reward_model)
    assert load_toml(PpoRunConfig, tmp_path / "ppo.toml") == ppo
    assert load_toml(RewardModelRunConfig, tmp_path / "reward_model.toml") == reward_model
    assert ppo.training.steps == 21


def test_toml_has_plain_values_before_sections_and_names_nested_ones_in_full() -> None:
    assert to_toml({"a": {"x": 1, "b": {"y++": 2}}}) == '[a]\nx = 1\n\n[a.b]\n"y++" = 2\n'
    assert (
        to_toml({"a": {"x": [1, 2]}, "b": 'it\'s "b"', "c": True})
        == 'b = "it\'s \\"b\\""\nc = true\n\n[a]\nx = [1, 2]\n'
    )


def make_rollout(prompt: str, index: int, ids: list[int]) -> Rollout:
    return Rollout(
        rollout_id=f"{prompt}/{index}",
        group_id=prompt,
        prompt_ids=[5],
        completion_ids=ids,
        logprobs=[-1.0] * len(ids),
        policy_versions=[0] * len(ids),
        finish_reason="length",
    )


def test_labelled_pairs_keep_the_sampled_ids_and_can_be_trained_on(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    good, bad = (tokenizer(text)["input_ids"] for text in ("good.", "bad"))
    items = [PromptItem("first", [5, 6]), PromptItem("second", [7])]
    rollouts = [
        [make_rollout("0", 0, bad), make_rollout("0", 1, good)],
        [make_rollout("1", 0, good), make_rollout("1", 1, good)],  # no difference: skipped
    ]
    data = write_labelled_pairs(tmp_path / "pairs.jsonl", with_texts(items, rollouts, tokenizer), seed=0)
    assert (len(data.pairs), data.num_skipped) == (1, 1)
    (pair,) = load_preferences(tmp_path / "pairs.jsonl", tokenizer, max_tokens=20).pairs
    chosen, rejected = (bad, good) if data.pairs[0].is_flipped else (good, bad)
    assert pair.prompt_ids == (5, 6)
    assert (list(pair.chosen_ids), list(pair.rejected_ids)) == (chosen, rejected)
