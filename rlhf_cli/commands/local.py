"""Checkpoints that a command is given as folders, served on this machine for as long as the command runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rlhf_cli.commands.output import stderr
from rlhf_cli.local.processes import interrupt_on_signals
from rlhf_cli.local.services import LocalServices
from rlhf_cli.local.services_file import Kind
from rlhf_cli.local.supervisor import Supervisor

START_TIMEOUT_SECONDS = 600.0


class ServedFolders:
    """Starts services when they are asked for."""

    def __init__(self, services: LocalServices) -> None:
        self._services = services

    def start(self, name: str, kind: Kind, arguments: Sequence[str]) -> str:
        """Returns the target of a service of that kind once it serves. Raises: ServiceDiedError."""
        entry = self._services.start(name, kind, arguments)
        with stderr.status(f"starting {name}"):
            self._services.wait_ready([entry], START_TIMEOUT_SECONDS, lambda states: None)
        return entry.target

    @contextmanager
    def serving(self, name: str, kind: Kind, arguments: Sequence[str]) -> Iterator[str]:
        """Serves inside the block alone; gives the target."""
        entry = self._services.start(name, kind, arguments)
        try:
            with stderr.status(f"starting {name}"):
                self._services.wait_ready([entry], START_TIMEOUT_SECONDS, lambda states: None)
            yield entry.target
        finally:
            self._services.end(entry)


@contextmanager
def served_folders() -> Iterator[ServedFolders]:
    """Gives what starts services; all of them are gone when the block is left, whatever ends it."""
    with TemporaryDirectory(prefix="rlhf-") as folder, interrupt_on_signals():
        place = Path(folder)
        with Supervisor(place / "logs", lambda message: stderr.print(message, markup=False)) as supervisor:
            yield ServedFolders(LocalServices(supervisor, place / "services.toml"))
