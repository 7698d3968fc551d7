"""What is read from files, and read again when they change: certificates, tokens, lists of clients.

Its logger is the standard library's: the probe, which must start fast, comes by here.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from rlhf.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = list[tuple[int, int, int] | None]
ASK_SECONDS = 1.0
"""How often the disk is asked, at most."""


class Renewed(Generic[T]):
    """A value from files. Files that cannot be used, as in the middle of a renewal, leave the value as it is."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Reads the value. Raises: whatever `read` raises, this first time."""
        self._paths = paths
        self._read = read
        self._seen = self._stamp()
        self._value = read()
        self._fault = ""
        self._ask_at = time.monotonic() + ASK_SECONDS

    def get(self) -> T:
        """Returns the newest value that could be used, at most a second old."""
        now = time.monotonic()
        if now >= self._ask_at:
            self._ask_at = now + ASK_SECONDS
            stamp = self._stamp()
            if stamp != self._seen:
                self._renew(stamp)
        return self._value

    def _renew(self, stamp: Stamp) -> None:
        try:
            self._value = self._read()
        except (ConfigError, OSError) as error:
            # The stamp is not kept: what cannot be used now is tried again, and complained of once.
            if str(error) != self._fault:
                log.error("a changed file cannot be used; what it held before stays in force: %s", error)
            self._fault = str(error)
        else:
            log.info("took up what changed in %s", ", ".join(map(str, self._paths)))
            self._seen, self._fault = stamp, ""

    def _stamp(self) -> Stamp:
        """Returns what changes when a file is written, or replaced behind a link as Kubernetes does it."""
        stamps: Stamp = []
        for path in self._paths:
            try:
                found = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps
