"""`rlhf score`: asks a reward service what it thinks of completions."""

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from rlhf.client.reward import Reward, RewardClient, RewardError, ScoreItem
from rlhf_cli.commands.inputs import Record, pair_records
from rlhf_cli.commands.output import CommandError, print_error, print_json, stderr, stdout
from rlhf_cli.commands.targets import JsonOption, ServicesOption, TargetOption, resolve_target, run_against

BATCH_ITEMS = 64
"""Items in one call: few, so that the progress moves."""


def score(
    prompt: Annotated[str | None, typer.Option(help="What the user said.")] = None,
    completion: Annotated[str | None, typer.Option(help="What the model answered.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSONL with "prompt" and "completion" on each line; - is stdin.')
    ] = None,
    target: TargetOption = None,
    services: ServicesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score completions with the reward service."""
    records = pair_records(prompt, completion, file)
    items = [ScoreItem.text(record.text("prompt"), record.text("completion"), record.place) for record in records]
    address = resolve_target("reward", target, services)
    num_errors = run_against(address, _score(address, items, records, as_json))
    if num_errors:
        raise CommandError(f"{num_errors} of {len(items)} items have no score")


async def _score(address: str, items: Sequence[ScoreItem], records: Sequence[Record], as_json: bool) -> int:
    """Prints each item's score; returns how many have none."""
    num_done = num_errors = 0
    async with RewardClient(address) as reward:
        with Progress(console=stderr, transient=True, disable=len(items) <= BATCH_ITEMS) as progress:
            bar = progress.add_task("scoring", total=len(items))
            async with aclosing(reward.score_batches(items, batch_items=BATCH_ITEMS)) as batches:
                async for batch in batches:
                    for result, record in zip(batch.results, records[num_done:], strict=False):
                        num_errors += isinstance(result, RewardError)
                        _print_result(result, record, batch.model_version, as_json)
                    num_done += len(batch.results)
                    progress.advance(bar, len(batch.results))
    return num_errors


def _print_result(result: Reward | RewardError, record: Record, model_version: str, as_json: bool) -> None:
    if isinstance(result, RewardError):
        print_error(f"{result.item_id}: {result.code}: {result.message}")
    if as_json:
        print_json({**record.value, **_outcome(result), "model_version": model_version})
    elif isinstance(result, Reward):
        spread = "" if result.spread is None else f" ± {result.spread:.4f}"
        stdout.print(f"{result.reward:+.4f}{spread}  {record.text('completion')}", markup=False)


def _outcome(result: Reward | RewardError) -> dict[str, object]:
    """Returns the fields of a result as JSON."""
    if isinstance(result, RewardError):
        return {"error": {"code": result.code, "message": result.message}}
    outcome: dict[str, object] = {"reward": result.reward}
    if result.spread is not None:
        outcome["spread"] = result.spread
    if result.components:
        outcome["components"] = {component.name: component.reward for component in result.components}
    return outcome
