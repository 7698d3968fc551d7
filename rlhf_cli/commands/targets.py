"""Where the services are: a flag, else the services file, else the environment, else this machine's default port."""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer

from rlhf.errors import ConfigError, NotReadyError
from rlhf.serving.directory import SERVICES
from rlhf_cli.errors import CommandError, UsageError

if TYPE_CHECKING:
    from rlhf_cli.local.services import ServiceEntry

T = TypeVar("T")

TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="HOST:PORT", help="Where the service is. Else --services, else the environment."),
]
ServicesOption = Annotated[
    Path | None,
    typer.Option("--services", metavar="FILE", help="TOML file with the places of services, as `rlhf demo` writes it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON lines to stdout.")]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="DIR",
        help="The model's tokenizer. Default: the path that the service reports, if local.",
    ),
]


def resolve_target(kind: str, target: str | None, services_file: Path | None) -> str:
    """Returns where the service of a kind is, which is a name in the directory of services.

    Raises: ConfigError if the services file has none of that kind.
    """
    if target is not None:
        return target
    if services_file is not None:
        for entry in _entries(services_file):
            if entry.kind == kind:
                return entry.target
        raise ConfigError(f"--services is '{services_file}': it names no {kind} service; name one with --target")
    return os.environ.get(f"{SERVICES[kind].env_prefix}_TARGET", SERVICES[kind].local_target)


def resolve_all(targets: dict[str, str | None], services_file: Path | None) -> list["ServiceEntry"]:
    """Returns the services to look at: the file's, or one of each kind; a given target replaces those of its kind."""
    from rlhf_cli.local.services import ServiceEntry

    if services_file is None:
        return [
            ServiceEntry(name=kind, kind=kind, target=resolve_target(kind, targets[kind], None)) for kind in targets
        ]
    kept = [entry for entry in _entries(services_file) if targets[entry.kind] is None]
    return kept + [ServiceEntry(name=kind, kind=kind, target=target) for kind, target in targets.items() if target]


def _entries(services_file: Path) -> list["ServiceEntry"]:
    from rlhf_cli.local.services import read_services

    return read_services(services_file)


def run_against(target: str, work: Coroutine[Any, Any, T]) -> T:
    """Returns what the work with a service returns. Raises: CommandError if the service is not there; ServiceError."""
    try:
        return asyncio.run(work)
    except NotReadyError as error:
        reason = explain_absence(error)
        raise CommandError(str(error) if reason is None else f"{target} {reason}") from None


def explain_absence(error: NotReadyError) -> str | None:
    """Returns why a service cannot be reached, in a few words; None if it answered, and the error has its own words."""
    message = str(error)
    if "RLHF_TLS" in message:
        return "closes connections: does one side alone have the RLHF_TLS variables?"
    if "refused" in message:
        return "refuses connections; is the service running?"
    if "resolving" in message:
        return "is no known host; check the name"
    if "did not answer" in message or "connect" in message:
        return "did not answer in time; is the service running?"
    return None


PolicySource: TypeAlias = str | Path
"""The target of a service, or the folder of a checkpoint."""


def named_policies(
    services: Sequence[str] | None,
    checkpoints: Sequence[str] | None,
    against: str | None,
    services_file: Path | None,
) -> dict[str, PolicySource]:
    """Returns the policies by name, in the order of the flags, services before checkpoints.

    One service may go without a name: it is "policy", or "before" beside --against, which is "after". Without any flag
    it is the services file's, or the default one.

    Raises: UsageError for two of one name, a second one without a name, or a folder that is not there.
    """
    flags = list(services or [])
    if not flags and not checkpoints:
        flags = [resolve_target("policy", None, services_file)]
    policies: dict[str, PolicySource] = {}
    for flag in flags:
        name, _, target = flag.rpartition("=")
        if not name and (len(flags) > 1 or checkpoints):
            raise UsageError(f"--policy is '{flag}': of several policies each needs a name: --policy NAME={target}")
        _add(policies, "--policy", name or ("policy" if against is None else "before"), target)
    for flag in checkpoints or []:
        name, _, folder = flag.partition("=")
        if not name or not folder:
            raise UsageError(f"--checkpoint is '{flag}': give a name and a folder: --checkpoint NAME=DIR")
        if not Path(folder).is_dir():
            raise UsageError(f"--checkpoint {name} is '{folder}': no such directory")
        _add(policies, "--checkpoint", name, Path(folder))
    if against is not None:
        _add(policies, "--against", "after", against)
    return policies


def named_rewards(flags: Sequence[str] | None, services_file: Path | None) -> dict[str, str]:
    """Returns the targets of the reward services by name: those of the flags, else of the file, else the default one.

    Raises: UsageError for two of one name.
    """
    if not flags and services_file is not None:
        found = {entry.name: entry.target for entry in _entries(services_file) if entry.kind == "reward"}
        if found:
            return found
    rewards: dict[str, str] = {}
    for flag in flags or [resolve_target("reward", None, services_file)]:
        name, _, target = flag.partition("=") if "=" in flag else ("reward", "", flag)
        if name in rewards:
            raise UsageError(f"--reward names '{name}' twice; give each a name of its own: --reward NAME={target}")
        rewards[name] = target
    return rewards


def _add(policies: dict[str, PolicySource], flag: str, name: str, source: PolicySource) -> None:
    if name in policies:
        raise UsageError(f"{flag} names '{name}' twice; give each policy a name of its own")
    policies[name] = source
