"""The report of an evaluation: its rows and numbers as files, win rates of policies against one another, and tables."""

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf.statistics import MeanWithInterval, clustered_mean
from services.trainer.evaluation.evaluate import Evaluation, EvaluationRow, summarise


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often one policy beats another in the eyes of a reward service or judge."""

    rate: MeanWithInterval
    """Mean over all pairs of 1 for a win, 1/2 for a tie, 0 for a loss; its interval is clustered by prompt."""
    wins: int
    ties: int
    losses: int
    num_prompts: int
    """That both policies have a completion of."""


def win_rate(rows: Sequence[EvaluationRow], baseline: Sequence[EvaluationRow], reward: str) -> WinRate | None:
    """Returns how often completions score above the baseline's completions of the same prompt.

    Every sample of a prompt meets every sample of the baseline for it: all these pairs use all that was sampled, and
    the interval by prompts allows for their being alike.

    Args:
        reward: the name of the reward service whose scores decide.
    Returns None if the two share no prompt.
    """
    scores, others = _scores_by_prompt(rows, reward), _scores_by_prompt(baseline, reward)
    prompts = sorted(scores.keys() & others.keys())
    outcomes = [
        (prompt, 1.0 if score > other else 0.5 if score == other else 0.0)
        for prompt in prompts
        for score in scores[prompt]
        for other in others[prompt]
    ]
    if not outcomes:
        return None
    values = [value for _, value in outcomes]
    return WinRate(
        rate=clustered_mean(values, [prompt for prompt, _ in outcomes]),
        wins=values.count(1.0),
        ties=values.count(0.5),
        losses=values.count(0.0),
        num_prompts=len(prompts),
    )


def win_rates(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, WinRate]]:
    """Returns, by policy and by reward service, the win rate of every policy against the first one."""
    (_, first), *others = evaluations.items()
    return {
        name: {
            reward: rate
            for reward in sorted({name for row in evaluation.rows for name in row.rewards})
            if (rate := win_rate(evaluation.rows, first.rows, reward)) is not None
        }
        for name, evaluation in others
    }


def _scores_by_prompt(rows: Sequence[EvaluationRow], reward: str) -> dict[int, list[float]]:
    scores: defaultdict[int, list[float]] = defaultdict(list)
    for row in rows:
        if reward in row.rewards:
            scores[row.prompt_index].append(row.rewards[reward])
    return dict(scores)


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


def read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Returns what write_evaluations wrote, by the name of the policy."""
    rows: defaultdict[str, list[EvaluationRow]] = defaultdict(list)
    with (folder / ROWS_FILE).open(encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            rows[values.pop("policy")].append(EvaluationRow(**values))
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    return {
        name: Evaluation(rows=rows[name], summary=summarise(rows[name]), dropped=each["dropped"])
        for name, each in summary["evaluations"].items()
    }


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
