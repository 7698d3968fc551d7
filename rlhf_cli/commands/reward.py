"""`rlhf reward`: how rewards develop, other weights for a reward service, and which of two completions is better."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.commands.output import print_json, print_table, stdout
from rlhf_cli.commands.targets import JsonOption, ServicesOption, TargetOption, resolve_target, run_against
from rlhf_cli.errors import CommandError

if TYPE_CHECKING:
    from rlhf.client import RewardReport

app = typer.Typer(no_args_is_help=True)

COLUMNS = ("caller", "items", "reward", "drift", "length", "repeats", "spread", "held-out")


@app.command()
def report(
    target: TargetOption = None,
    services: ServicesOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Pause between two looks.")] = 5.0,
) -> None:
    """Show how rewards have developed, by model version and caller, and what looks wrong.

    Reward is the mean of the newest and its standard deviation; drift is how far these are from the caller's first ones
    (population stability index); length is the rank correlation of reward and length; repeats is the share of repeated
    n-grams; spread is an ensemble's disagreement; held-out is how far the reward is ahead of the held-out one, and how
    the two correlate. A dash: not known yet, or not configured. docs/monitoring.md explains them.
    """
    address = resolve_target("reward", target, services)
    run_against(address, _report(address, as_json, interval if watch else None))


@app.command()
def load(
    path: Annotated[
        list[str],
        typer.Option(metavar="DIR", help="Checkpoint on the service's machine; for an ensemble once for each member."),
    ],
    component: Annotated[str, typer.Option(metavar="NAME", help="The part of a weighted sum that gets it.")] = "",
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long loading may take.")] = 600.0,
    target: TargetOption = None,
    services: ServicesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the service serve other weights. The present ones answer until the new ones are loaded and tried."""
    address = resolve_target("reward", target, services)
    run_against(address, _load(address, path, component, timeout, as_json))


@app.command()
def compare(
    prompt: Annotated[str, typer.Option(help="What the user said.")],
    first: Annotated[str, typer.Option(help="A completion.")],
    second: Annotated[str, typer.Option(help="Another one.")],
    target: TargetOption = None,
    services: ServicesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how probable it is that people prefer the first of two completions."""
    address = resolve_target("reward", target, services)
    run_against(address, _compare(address, prompt, (first, second), as_json))


async def _report(address: str, as_json: bool, interval: float | None) -> None:
    """Prints the reports once, or again and again with a pause of `interval` seconds."""
    from rlhf.client import RewardClient

    async with RewardClient(address) as client:
        while True:
            reports = await client.get_report()
            if interval is not None and stdout.is_terminal and not as_json:
                stdout.clear()
            _print_reports(reports, as_json)
            if interval is None:
                return
            await asyncio.sleep(interval)


async def _load(address: str, paths: Sequence[str], component: str, timeout: float, as_json: bool) -> None:
    from rlhf.client import RewardClient

    async with RewardClient(address) as client:
        loaded = await client.load_model(paths, component=component, deadline_seconds=timeout)
    if as_json:
        print_json(asdict(loaded))
        return
    stdout.print(
        f"serving {loaded.model_version} after {loaded.load_seconds:.1f} s, before that "
        f"{loaded.previous_model_version}",
        markup=False,
        soft_wrap=True,
    )


async def _compare(address: str, prompt: str, completions: tuple[str, str], as_json: bool) -> None:
    from rlhf.client import ComparisonItem, RewardClient, RewardError, ScoreItem

    first, second = (ScoreItem.text(prompt, completion) for completion in completions)
    async with RewardClient(address) as client:
        batch = await client.compare([ComparisonItem(first, second)])
    (result,) = batch.results
    if isinstance(result, RewardError):
        raise CommandError(f"{result.code}: {result.message}")
    if as_json:
        print_json({**asdict(result), "model_version": batch.model_version})
        return
    stdout.print(f"the first is preferred with probability {result.probability:.4f}", markup=False)
    for name, value in (("first", result.first_reward), ("second", result.second_reward)):
        if value is not None:
            stdout.print(f"{name:6} {value:+.4f}", markup=False)


def _print_reports(reports: Sequence["RewardReport"], as_json: bool) -> None:
    if as_json:
        for each in reports:
            print_json(asdict(each))
        return
    if not reports:
        stdout.print("no rewards have been given yet", markup=False)
        return
    for version, group in groupby(reports, key=lambda report: report.model_version):
        of_version = list(group)
        stdout.print(f"model version {version}", markup=False)
        print_table(COLUMNS, [_row(each) for each in of_version], unbroken=COLUMNS[1:])
        for each in of_version:
            for warning in each.warnings:
                stdout.print(f"{each.caller}: {warning}", style="yellow", markup=False, soft_wrap=True)


def _row(report: "RewardReport") -> list[str]:
    held_out = "-"
    if report.heldout_gap is not None:
        held_out = f"{report.heldout_gap:+.2f}, {_number(report.heldout_correlation, '+.2f')}"
    return [
        report.caller,
        str(report.item_count),
        f"{report.reward_mean:+.2f} ± {report.reward_std:.2f}",
        _number(report.drift, ".2f"),
        _number(report.length_correlation, "+.2f"),
        _number(report.repetition_mean, ".0%"),
        _number(report.spread_mean, ".2f"),
        held_out,
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
