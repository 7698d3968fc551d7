"""The real reward service as a process of its own, on free ports, for clients that are processes too."""

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf.client.sync import SyncRewardClient
from tests.support.forked import Command

START_SECONDS = 120


@dataclass(frozen=True)
class RewardProcess:
    """Where a service is."""

    target: str
    """Of gRPC."""
    url: str
    """Of HTTP."""


@contextmanager
def serving_reward(model: Path, *flags: str) -> Iterator[RewardProcess]:
    """Serves a reward model in float32, ready, until the block ends."""
    words = ["--server.host", "127.0.0.1", "--server.port", "0", "--server.metrics_port", "0", "--http.port", "0"]
    words += ["--scorer.kind", "model", "--scorer.dtype", "float32", "--scorer.path", str(model), *flags]
    with tempfile.NamedTemporaryFile() as log:
        process = Command("services.reward.server", *words, output=Path(log.name))
        try:
            yield _wait_until_ready(process, Path(log.name))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait_until_ready(process: Command, log: Path) -> RewardProcess:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        ports = _ports(log)
        if len(ports) == 2:
            target = f"127.0.0.1:{ports['listening']}"
            with SyncRewardClient(target) as client:
                if client.is_serving():
                    return RewardProcess(target, f"http://127.0.0.1:{ports['listening over http']}")
        time.sleep(0.2)
    raise AssertionError(f"the reward service did not become ready:\n{log.read_text()}")


def _ports(log: Path) -> dict[str, int]:
    """Returns the port by the event that names it."""
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return {event["event"]: event["port"] for event in events if event["event"].startswith("listening")}
