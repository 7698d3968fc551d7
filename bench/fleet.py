"""How a weight push scales with the replicas: `make bench-fleet`, or python bench/fleet.py [--json FILE].

Starts 8 real policy services (transformers engine, a tiny model with a large vocabulary) and pushes all weights to 1,
2, 4 and 8 of them, to each by itself (parallel) and by relay. Once as fast as this machine goes, where all of them
share its cores, and once with every sender behind a link of its own of limited rate, as machines in a network are. What
leaves the trainer is counted on its way, by a relay.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoModelForCausalLM

from bench.fleet_relay import Link, Relays
from bench.measurements import load_average, machine_facts, positive, say, show, write_json
from rlhf.client.policy import PolicyClient
from rlhf.client.push import push_to_all
from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.models.loading import load_policy
from rlhf.models.weights import checkpoint_tensors, tensor_info
from rlhf.weights import WeightsManifest
from rlhf_cli.local.services import ENVIRONMENT, LocalServices
from rlhf_cli.local.supervisor import Supervisor
from rlhf_cli.models.tiny_model import make_tiny_model

REPLICAS = (1, 2, 4, 8)
WAYS = ("parallel", "relay")
VOCAB_SIZE = 131_072
"""Times 64 (the hidden size) times 4 bytes: 34 MB, so that a limited link decides how long a push takes."""
DEADLINE_SECONDS = 300.0
PATIENCE_SECONDS = 5.0
READY_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Pushes of one kind; medians."""

    way: str
    num_replicas: int
    link_megabytes_per_second: int | None
    seconds: float
    egress_bytes: float
    """What left the trainer."""
    all_seconds: tuple[float, ...]


class Bench:
    """Pushes one snapshot after another to the same replicas."""

    def __init__(self, targets: Sequence[str], snapshot: WeightsSnapshot, num_pushes: int) -> None:
        self._targets = targets
        self._snapshot = snapshot
        self._num_pushes = num_pushes

    async def measure(self, way: str, num_replicas: int, megabytes_per_second: int | None) -> Measured:
        """Returns the medians of some pushes; one before them connects and warms up."""
        rate = None if megabytes_per_second is None else megabytes_per_second * 1e6
        trainer, relays = Link(rate), Relays()
        reached = await self._reach(way, num_replicas, rate, trainer, relays)
        seconds, egress = [], []
        try:
            for _ in range(self._num_pushes + 1):
                self._snapshot = replace(self._snapshot, policy_version=self._snapshot.policy_version + 1)
                started, before = time.perf_counter(), trainer.num_bytes
                await self._push(way, reached)
                seconds.append(time.perf_counter() - started)
                egress.append(trainer.num_bytes - before)
        finally:
            await asyncio.gather(*(each.close() for each in reached))
            await relays.close()
        return Measured(
            way=way,
            num_replicas=num_replicas,
            link_megabytes_per_second=megabytes_per_second,
            seconds=statistics.median(seconds[1:]),
            egress_bytes=statistics.median(egress[1:]),
            all_seconds=tuple(seconds),
        )

    async def _reach(
        self, way: str, num_replicas: int, rate: float | None, trainer: Link, relays: Relays
    ) -> list[PolicyClient]:
        """Returns the replicas as their senders reach them: the trainer over its link, the others each over its own."""
        addresses = []
        for place, target in enumerate(self._targets[:num_replicas]):
            if way == "parallel" or place == 0:
                addresses.append(await relays.open(trainer, target))
            else:
                addresses.append(target if rate is None else await relays.open(Link(rate), target))
        return [PolicyClient(address) for address in addresses]

    async def _push(self, way: str, reached: Sequence[PolicyClient]) -> None:
        snapshot = self._snapshot
        if way == "relay":
            outcomes = await push_to_all(
                reached,
                snapshot.header("full"),
                lambda: snapshot.payload("full"),
                deadline_seconds=DEADLINE_SECONDS,
                patience_seconds=PATIENCE_SECONDS,
            )
            results = list(outcomes.values())
        else:
            pushes = (
                each.update_weights(
                    snapshot.header("full"), snapshot.payload("full"), deadline_seconds=DEADLINE_SECONDS
                )
                for each in reached
            )
            results = list(await asyncio.gather(*pushes))
        for result in results:
            if isinstance(result, Exception):
                raise result
            if (result.policy_version, result.weights_digest) != (snapshot.policy_version, snapshot.digest):
                raise AssertionError(f"a replica serves version {result.policy_version} after the push")


def make_model(folder: Path) -> WeightsSnapshot:
    """Writes the model, and returns its weights as version 1."""
    make_tiny_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(VOCAB_SIZE, mean_resizing=False)
    model.save_pretrained(folder)
    named = [(name, tensor.contiguous()) for name, tensor in checkpoint_tensors(load_policy(folder, dtype="float32"))]
    manifest = WeightsManifest(tuple(tensor_info(name, tensor) for name, tensor in named))
    tensors = tuple(tensor for _, tensor in named)
    return WeightsSnapshot(policy_version=1, manifest=manifest, digest=manifest.digest, tensors=tensors)


async def measure(folder: Path, counts: Sequence[int], rates: Sequence[int | None], num_pushes: int) -> list[Measured]:
    """Starts the replicas, and returns all measurements."""
    snapshot = make_model(folder / "model")
    with Supervisor(folder / "logs", say) as supervisor:
        services = LocalServices(supervisor, folder / "services.toml", environment=ENVIRONMENT)
        flags = ["--model.path", str(folder / "model"), "--model.dtype", "float32", "--model.engine", "transformers"]
        started = [services.start(f"policy-{number}", "policy", flags) for number in range(max(counts))]
        services.wait_ready(started, READY_TIMEOUT_SECONDS, lambda states: None)
        bench = Bench([service.target for service in started], snapshot, num_pushes)
        measured = []
        for rate in rates:
            for way in WAYS:
                for count in counts:
                    measured.append(await bench.measure(way, count, rate))
                    say(f"{way}, {count} replicas, link {rate or 'unlimited'}: {measured[-1].seconds:.2f} s")
    return measured


def rows(measured: Sequence[Measured]) -> list[list[str]]:
    """Returns one row for each measurement, compared with one replica pushed to the same way."""
    table = []
    for each in measured:
        same = (each.way, each.link_megabytes_per_second)
        base = next(one for one in measured if (one.way, one.link_megabytes_per_second) == same)
        table.append(
            [
                f"{each.way}, {each.num_replicas}",
                "none" if each.link_megabytes_per_second is None else f"{each.link_megabytes_per_second} MB/s",
                f"{each.seconds:.2f}",
                f"{each.seconds / base.seconds:.2f}",
                f"{each.egress_bytes / 1e6:.1f}",
                f"{each.egress_bytes / base.egress_bytes:.2f}",
            ]
        )
    return table


HEADINGS = ("replicas", "link limit", "push s", "to one", "egress MB", "to one")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pushes", type=positive, default=3, help="of each kind, after one that warms up (default 3)")
    parser.add_argument("--link", type=positive, default=20, help="MB/s of every sender's limited link (default 20)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there; - for standard output")
    arguments = parser.parse_args(argv)
    load = load_average()
    with TemporaryDirectory() as folder:
        measured = asyncio.run(measure(Path(folder), REPLICAS, (None, arguments.link), arguments.pushes))
    show("Weight pushes by replicas", HEADINGS, rows(measured), to_stderr=arguments.json == "-")
    if arguments.json:
        result = {"machine": machine_facts(), "load_average": load, "pushes": [asdict(each) for each in measured]}
        write_json(result, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
