"""`rlhf status`: health, model and version of every service."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf.errors import NotReadyError, ServiceError
from rlhf_cli.commands.output import print_json, print_table
from rlhf_cli.commands.targets import JsonOption, ServicesOption, explain_absence, resolve_all
from rlhf_cli.errors import CommandError

if TYPE_CHECKING:
    from rlhf.client.base import ServiceClient
    from rlhf_cli.local.services import ServiceEntry

HEALTH_STYLES = {"serving": "green", "not ready": "yellow", "away": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One row of the table."""

    name: str
    kind: str
    target: str
    health: str
    """One of "serving", "not ready", "away"."""
    model: str = ""
    version: str = ""
    detail: str = ""
    metrics_url: str = ""


def status(
    policy: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The policy service.")] = None,
    reward: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The reward service.")] = None,
    reference: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The reference service.")] = None,
    trainer: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The trainer.")] = None,
    services: ServicesOption = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a service may take to answer.")] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Show health, model and version of every service. Exits 1 unless all are serving."""
    entries = resolve_all({"policy": policy, "reward": reward, "reference": reference, "trainer": trainer}, services)
    rows = asyncio.run(_look_at_all(entries, timeout))
    if as_json:
        for row in rows:
            print_json(asdict(row))
    else:
        print_table(
            ["service", "target", "health", "model", "version", ""],
            [[row.name, row.target, row.health, _shortened(row.model), row.version, row.detail] for row in rows],
            styles=HEALTH_STYLES,
        )
    away = [row.name for row in rows if row.health != "serving"]
    if away:
        raise CommandError(f"not serving: {', '.join(away)}")


async def _look_at_all(entries: Sequence["ServiceEntry"], timeout: float) -> list[ServiceStatus]:
    return list(await asyncio.gather(*(_look_at(entry, timeout) for entry in entries)))


async def _look_at(entry: "ServiceEntry", timeout: float) -> ServiceStatus:
    """Returns what a service says of itself, or why it does not."""
    base = {"name": entry.name, "kind": entry.kind, "target": entry.target, "metrics_url": entry.metrics_url}
    async with _open_client(entry) as client:
        try:
            model, version, detail = await _describe(entry.kind, client, timeout)
        except NotReadyError as error:
            reason = explain_absence(error)
            return ServiceStatus(**base, health="not ready" if reason is None else "away", detail=reason or str(error))
        except ServiceError as error:
            return ServiceStatus(**base, health="not ready", detail=str(error))
        health = "serving" if await client.is_serving(timeout) else "not ready"
    return ServiceStatus(**base, health=health, model=model, version=version, detail=detail)


def _open_client(entry: "ServiceEntry") -> "ServiceClient":
    from rlhf.client import RewardClient
    from rlhf.client.policy import PolicyClient
    from rlhf.client.reference import ReferenceClient
    from rlhf.client.trainer import TrainerClient

    clients: dict[str, Callable[[str], ServiceClient]] = {
        "policy": PolicyClient,
        "reward": RewardClient,
        "reference": ReferenceClient,
        "trainer": TrainerClient,
    }
    return clients[entry.kind](entry.target)


async def _describe(kind: str, client: Any, timeout: float) -> tuple[str, str, str]:
    """Returns (model, version, detail) of a service."""
    if kind == "trainer":
        run = await client.get_run(timeout)
        progress = f"{run.state}, step {run.step} of {run.step_count}"
        return run.run_name, str(run.policy_version), f"{progress}; {run.message}" if run.message else progress
    model = await client.get_model(timeout)
    match kind:
        case "policy":
            return model.model_name, str(model.policy_version), f"{model.engine}, {model.dtype}"
        case "reward":
            return model.model_name, model.model_version, ""
        case "reference":
            return model.model_name, model.reference_version[:16], ""
        case _:
            raise TypeError(f"no description of a {kind} service")


def _shortened(model: str) -> str:
    """Returns the last part of a path: the table has little room, and --json has it whole."""
    return Path(model).name if "/" in model else model
