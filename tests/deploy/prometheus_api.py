"""A running Prometheus, asked over HTTP: what the tests of both deployments need of it."""

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class PrometheusError(Exception):
    """Prometheus refused a query, and says why."""


@dataclass(frozen=True)
class Prometheus:
    """The HTTP API at an address."""

    url: str
    """Such as "http://127.0.0.1:9090"."""

    def ask(self, path: str, **parameters: object) -> Any:
        """Returns `data` of an answer. Raises: PrometheusError with Prometheus' words, OSError without an answer."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{parameters}: {error.read().decode(errors='replace')}") from None

    def value(self, query: str) -> float | None:
        """Returns the value of an instant query's first series, None if there is none."""
        result = self.ask("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None

    def has_data(self, query: str, start: float, end: float, step: float = 1.0) -> bool:
        """Returns whether a query has a finite value anywhere between two times (Unix seconds)."""
        result = self.ask("query_range", query=query, start=start, end=end, step=step)["result"]
        return any(math.isfinite(float(value)) for series in result for _, value in series["values"])

    def targets(self) -> dict[str, set[str]]:
        """Returns the health of the targets of each job: {"policy": {"up"}}."""
        health: dict[str, set[str]] = {}
        for target in self.ask("targets")["activeTargets"]:
            health.setdefault(target["labels"]["job"], set()).add(target["health"])
        return health

    def rules(self) -> list[dict[str, Any]]:
        """Returns all rules, each with name, type, health and lastError."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


def wait_until(condition: Callable[[], bool], what: str, seconds: float, pause: float = 1.0) -> None:
    """Returns once a condition holds. Raises: AssertionError that says what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(pause)
