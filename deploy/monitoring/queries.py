"""The queries of the dashboards, run on a Prometheus: does every one of them return data there?

    python deploy/monitoring/queries.py --prometheus http://localhost:9090

Exit code 0 if all do, 1 if not (those are named), 2 if Prometheus cannot be asked. Needs nothing but Python. The GPU
dashboard is left out unless it is named, and with --without-vllm so are the panels that only the vLLM engine has.
"""

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
DEFAULT = ("run", "services", "policy", "reward", "resources")
"""Dashboards that have data wherever the services run; gpu needs GPUs and NVIDIA's exporter."""
EVERYTHING = ".*"
"""What stands for a variable of which all is chosen."""
QUERY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """A query of a panel, as the dashboard has it: with variables."""

    dashboard: str
    panel: Mapping[str, Any]
    """The panel as in the JSON."""
    expr: str
    legend: str
    instant: bool
    """Whether the panel shows the newest value alone."""

    @property
    def name(self) -> str:
        """Where the query is, for messages."""
        return f"{self.dashboard} / {self.panel['title']}"

    @property
    def needs_vllm(self) -> bool:
        """Whether it asks for vLLM's own metrics."""
        return "vllm:" in self.expr


def load_dashboard(name: str) -> dict[str, Any]:
    """Returns the JSON of a dashboard."""
    board: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return board


def panel_queries(names: Sequence[str] = DEFAULT) -> Iterator[PanelQuery]:
    """Yields the queries of some dashboards, panel by panel."""
    for name in names:
        for panel in load_dashboard(name)["panels"]:
            for target in panel["targets"]:
                instant = bool(target.get("instant"))
                yield PanelQuery(name, panel, target["expr"], target["legendFormat"], instant)


def substitute(
    expr: str, *, rate_interval: str = "1m", span: str = "1h", variables: Mapping[str, str] | None = None
) -> str:
    """Returns an expression as Grafana would send it.

    Args:
        rate_interval: for $__rate_interval; at least four times the scrape interval. span: for $__range.
        variables: regular expressions for the dashboard's variables; the others choose everything.
    """
    values = {"__rate_interval": rate_interval, "__range": span, **(variables or {})}
    expr = re.sub(r'="\$(\w+)"', r'=~"$\1"', expr)  # a variable with one choice stands for all of them as well
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], EVERYTHING), expr)


class QueryError(Exception):
    """A Prometheus that cannot be asked, or does not take a query."""


class Prometheus:
    """The HTTP API of a Prometheus."""

    def __init__(self, url: str) -> None:
        """Args: url: such as http://localhost:9090."""
        self._url = url.rstrip("/")

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Returns series: {"metric": labels, "values": [[time, text], ...]}. Raises: QueryError."""
        parameters = {"query": expr, "start": start, "end": end, "step": step}
        body = urllib.parse.urlencode(parameters).encode()
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/query_range", body, timeout=QUERY_SECONDS) as answer:
                reply = json.load(answer)
        except urllib.error.HTTPError as error:
            raise QueryError(f"{self._url} does not take the query {expr}: {error.read().decode()}") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            raise QueryError(f"no Prometheus answers at {self._url} ({why}); name it with --prometheus URL") from None
        series: list[dict[str, Any]] = reply["data"]["result"]
        return series


def without_data(
    prometheus: Prometheus, queries: Sequence[PanelQuery], *, minutes: float = 15, rate_interval: str = "1m"
) -> list[PanelQuery]:
    """Returns the queries that had no number at all in the last minutes."""
    end = time.time()
    start, step = end - 60 * minutes, max(1.0, 60 * minutes / 500)

    def has_data(query: PanelQuery) -> bool:
        expr = substitute(query.expr, rate_interval=rate_interval, span=f"{math.ceil(minutes)}m")
        series = prometheus.query_range(expr, start, end, step)
        return any(not math.isnan(float(value)) for each in series for _, value in each["values"])

    return [query for query in queries if not has_data(query)]


def main() -> int:
    """Checks the dashboards and prints what has no data; returns the exit code."""
    parser = argparse.ArgumentParser(description="Runs every query of the dashboards on a Prometheus.")
    parser.add_argument("--prometheus", default="http://localhost:9090", metavar="URL")
    parser.add_argument("--dashboards", nargs="+", default=list(DEFAULT), metavar="NAME", help="such as run gpu")
    parser.add_argument("--minutes", type=float, default=15, help="how far to look back (15)")
    parser.add_argument("--rate-interval", default="1m", help="$__rate_interval: four scrapes or more (1m)")
    parser.add_argument("--without-vllm", action="store_true", help="leave out the panels of vLLM's own metrics")
    options = parser.parse_args()
    queries = [each for each in panel_queries(options.dashboards) if not (options.without_vllm and each.needs_vllm)]
    try:
        empty = without_data(
            Prometheus(options.prometheus), queries, minutes=options.minutes, rate_interval=options.rate_interval
        )
    except QueryError as error:
        print(error, file=sys.stderr)
        return 2
    for query in empty:
        print(f"no data: {query.name}: {query.expr}")
    print(f"{len(queries) - len(empty)} of {len(queries)} queries returned data")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
