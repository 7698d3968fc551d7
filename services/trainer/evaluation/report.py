"""What an evaluation of one or more policies writes: every completion, the numbers as JSON, and a table."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.trainer.evaluation.evaluate import Evaluation
from services.trainer.evaluation.win_rate import WinRate, win_rates

ROWS_FILE = "rows.jsonl"
SUMMARY_FILE = "summary.json"
TABLE_FILE = "table.txt"
TABLE_WIDTH = 200


def write_evaluations(
    folder: Path, evaluations: Mapping[str, Evaluation], settings: Mapping[str, object]
) -> dict[str, object]:
    """Writes the files of an evaluation into a folder; returns what summary.json says.

    Args:
        evaluations: by the name of the policy; the first is the one that the others are compared with.
        settings: how they were sampled, to be kept with them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ROWS_FILE).open("w", encoding="utf-8") as file:
        for name, evaluation in evaluations.items():
            for row in evaluation.rows:
                file.write(json.dumps({"policy": name, **asdict(row)}, ensure_ascii=False) + "\n")
    rates = win_rates(evaluations)
    summary = summary_of(evaluations, rates, settings)
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    text = io.StringIO()
    console = Console(file=text, width=TABLE_WIDTH)
    for table in tables(evaluations, rates):
        console.print(table)
    (folder / TABLE_FILE).write_text(text.getvalue(), encoding="utf-8")
    return summary


def summary_of(
    evaluations: Mapping[str, Evaluation], rates: Mapping[str, Mapping[str, WinRate]], settings: Mapping[str, object]
) -> dict[str, object]:
    """Returns the numbers as plain values."""
    return {
        "settings": dict(settings),
        "evaluations": {
            name: {
                "summary": {measure: asdict(value) for measure, value in evaluation.summary.items()},
                "dropped": evaluation.dropped,
            }
            for name, evaluation in evaluations.items()
        },
        "win_rates": {
            name: {reward: asdict(rate) for reward, rate in by_reward.items()} for name, by_reward in rates.items()
        },
    }


def tables(evaluations: Mapping[str, Evaluation], rates: Mapping[str, Mapping[str, WinRate]]) -> list[Table]:
    """Returns the table of means and, where there are several policies and a reward, that of win rates."""
    means = _table("mean ± 95 % interval", list(evaluations))
    measures: dict[str, None] = {}  # a set that keeps the order
    for evaluation in evaluations.values():
        measures |= dict.fromkeys(evaluation.summary)
    for measure in measures:
        values = [evaluation.summary.get(measure) for evaluation in evaluations.values()]
        means.add_row(measure, *("" if value is None else value.format() for value in values))
    rewards = sorted({reward for by_reward in rates.values() for reward in by_reward})
    if not rewards:
        return [means]
    wins = _table(f"win rate against {next(iter(evaluations))} ± 95 % interval", list(rates))
    for reward in rewards:
        cells = [by_reward.get(reward) for by_reward in rates.values()]
        wins.add_row(f"by {reward}", *("" if cell is None else cell.rate.format("{:.1%}") for cell in cells))
    return [means, wins]


def dropped_lines(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Returns a sentence on each policy of which completions were left out."""
    return [
        f"{name}: completions left out: {', '.join(f'{count} {why}' for why, count in evaluation.dropped.items())}"
        for name, evaluation in evaluations.items()
        if evaluation.dropped
    ]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
