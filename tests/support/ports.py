"""Free ports for processes that must be told where to listen, apart from those that the system gives out itself."""

import itertools
import os
import socket

_FIRST, _NUM_PER_WORKER = 20_000, 1_000
"""Below Linux's range of ephemeral ports, which other tests' clients and servers take from at the same time."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_turns = itertools.count(os.getpid() % _NUM_PER_WORKER)


def free_port() -> int:
    """Returns a local TCP port that nothing listens on, another one at each call.

    Each worker of pytest-xdist has ports of its own.
    """
    for turn in itertools.islice(_turns, _NUM_PER_WORKER):
        port = _FIRST + _worker * _NUM_PER_WORKER + turn % _NUM_PER_WORKER
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port is free from {_FIRST + _worker * _NUM_PER_WORKER} on")
