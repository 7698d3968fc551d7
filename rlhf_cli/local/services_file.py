"""The file that says where services are: a pipeline writes it, `rlhf status --services FILE` and others read it."""

from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import AfterValidator, Field

from rlhf.config import Section, load_toml, suggestion
from rlhf.errors import ConfigError
from rlhf.files import write_whole
from rlhf.serving.directory import SERVICES


def _known(kind: str) -> str:
    if kind not in SERVICES:
        raise ValueError(f"there is no such service{suggestion(kind, SERVICES)}")
    return kind


Kind = Annotated[str, AfterValidator(_known)]
"""A service's name in the directory."""


class ServiceEntry(Section):
    """One service."""

    name: Annotated[str, Field(min_length=1)]
    """What to call it; several services may be of one kind."""
    kind: Kind
    """Which service of the directory it is."""
    target: Annotated[str, Field(min_length=1)]
    """Its "host:port"."""
    metrics_url: str = ""
    """Where its Prometheus metrics are; empty if not known."""


class ServicesFile(Section):
    """All services of a system."""

    service: list[ServiceEntry]
    """Each as a [[service]] table; none while nothing runs."""


def read_services(path: Path) -> list[ServiceEntry]:
    """Returns the services in a file. Raises: ConfigError for a file that is none, or names none."""
    services = load_toml(ServicesFile, path).service
    if not services:
        raise ConfigError(f"{path}: it names no service; the command that keeps it runs none at the moment")
    return services


def write_services(path: Path, services: list[ServiceEntry]) -> None:
    """Writes the file anew, whole or not at all."""
    write_whole(path, tomli_w.dumps({"service": [entry.model_dump() for entry in services]}))
