"""Which policies and which rewards `rlhf eval` was given, by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from rlhf_cli.commands.output import UsageError
from rlhf_cli.commands.targets import resolve_target
from rlhf_cli.local.services_file import read_services

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
        found = {entry.name: entry.target for entry in read_services(services_file) if entry.kind == "reward"}
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
