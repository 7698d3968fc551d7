"""The file that says where services are: the demo writes it, `rlhf status --services FILE` and others read it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rlhf.config import Section, load_toml

Kind = Literal["policy", "reward", "reference", "trainer"]


class ServiceEntry(Section):
    """One service."""

    name: Annotated[str, Field(min_length=1)]
    """What to call it; several services may be of one kind."""
    kind: Kind
    """Which contract it serves."""
    target: Annotated[str, Field(min_length=1)]
    """Its "host:port"."""
    metrics_url: str = ""
    """Where its Prometheus metrics are; empty if not known."""


class ServicesFile(Section):
    """All services of a system."""

    service: list[ServiceEntry] = Field(min_length=1)
    """Each as a [[service]] table."""


def read_services(path: Path) -> list[ServiceEntry]:
    """Returns the services in a file. Raises: ConfigError."""
    return load_toml(ServicesFile, path).service


def write_services(path: Path, services: list[ServiceEntry]) -> None:
    """Writes the file anew, whole or not at all."""
    tables = (
        "\n".join(["[[service]]", *(f'{key} = "{value}"' for key, value in entry.model_dump().items())])
        for entry in services
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    partial.rename(path)
