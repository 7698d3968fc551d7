"""Win rates and evaluation reports, by hand."""

import json
import math
from pathlib import Path

import pytest

from services.trainer.evaluation.evaluate import Evaluation, EvaluationRow, summarise
from services.trainer.evaluation.report import win_rate, win_rates, write_evaluations


def make_rows(scores: dict[int, list[float]], **values: float) -> list[EvaluationRow]:
    """Returns a completion for each score of each prompt."""
    return [
        EvaluationRow(
            prompt_index=prompt,
            prompt=f"prompt {prompt}",
            completion="yes",
            rewards={"judge": score, **values},
            kl=1.0,
            num_tokens=3,
            is_stopped=True,
            distinct_2=None,
            repeated_ngrams=None,
        )
        for prompt, of_prompt in scores.items()
        for score in of_prompt
    ]


def evaluation(scores: dict[int, list[float]]) -> Evaluation:
    rows = make_rows(scores)
    return Evaluation(rows=rows, summary=summarise(rows), dropped={})


def test_all_pairs_of_a_prompt_count_and_a_tie_is_half_a_win() -> None:
    ours = make_rows({0: [1.0, 3.0], 1: [2.0, 2.0], 2: [9.0]})
    base = make_rows({0: [2.0, 3.0], 1: [2.0, 1.0], 5: [0.0]})
    # Prompt 0: 1<2, 1<3, 3>2, 3=3: 1.5 of 4. Prompt 1: twice 2=2 and 2>1: 3 of 4. Prompts 2 and 5 stand alone.
    result = win_rate(ours, base, "judge")
    assert result is not None
    assert (result.wins, result.ties, result.losses, result.num_prompts) == (3, 3, 2, 2)
    assert result.rate.mean == pytest.approx(4.5 / 8)
    # Deviations sum to 1.5 - 4 * 0.5625 = -0.75 in prompt 0 and +0.75 in prompt 1: variance 2 * 2 * 0.5625 / 64.
    assert result.rate.half_width == pytest.approx(1.95996 * math.sqrt(2.25 / 64), rel=1e-4)


def test_more_samples_of_the_same_prompts_do_not_narrow_the_interval() -> None:
    once = win_rate(make_rows({0: [1.0], 1: [0.0]}), make_rows({0: [0.0], 1: [1.0]}), "judge")
    often = win_rate(make_rows({0: [1.0] * 5, 1: [0.0] * 5}), make_rows({0: [0.0] * 5, 1: [1.0] * 5}), "judge")
    assert once is not None
    assert often is not None
    assert often.rate.half_width == pytest.approx(once.rate.half_width)


def test_policies_without_a_common_prompt_have_no_win_rate() -> None:
    assert win_rate(make_rows({0: [1.0]}), make_rows({1: [1.0]}), "judge") is None


def test_every_policy_is_compared_with_the_first() -> None:
    rates = win_rates({"base": evaluation({0: [0.0]}), "a": evaluation({0: [1.0]}), "b": evaluation({0: [-1.0]})})
    assert {name: by_reward["judge"].rate.mean for name, by_reward in rates.items()} == {"a": 1.0, "b": 0.0}


def test_an_evaluation_is_written_as_rows_numbers_and_a_table(tmp_path: Path) -> None:
    evaluations = {"base": evaluation({0: [0.0, 1.0], 1: [0.5, 0.5]}), "new": evaluation({0: [2.0, 2.0], 1: [2.0]})}
    summary = write_evaluations(tmp_path / "out", evaluations, {"seed": 3})
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert [row["policy"] for row in rows] == ["base"] * 4 + ["new"] * 3
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    assert summary["settings"] == {"seed": 3}
    table = (tmp_path / "out/table.txt").read_text()
    assert "win rate against base" in table
    assert "100.0% ± 0.0%" in table
    assert "0.500 ± 0.000" in table  # each prompt of base has the mean 0.5
