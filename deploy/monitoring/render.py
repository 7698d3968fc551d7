"""Draws what the dashboards show on a Prometheus, without Grafana: the same queries, places, units and legends.

    python deploy/monitoring/render.py --prometheus http://localhost:9090 --minutes 30 --out pictures

It draws less well than Grafana does; it is there for documentation, reviews and machines without a Grafana. Needs
matplotlib.
"""

import argparse
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.monitoring.drawing import Line, draw_dashboard
from deploy.monitoring.queries import (
    DEFAULT,
    PanelQuery,
    Prometheus,
    QueryError,
    load_dashboard,
    panel_queries,
    substitute,
)

POINTS = 240
"""Points of time in a picture."""
CHOSEN = {"resources": {"job": "policy|reward.*|reference|trainer"}, "reward": {"job": "reward"}}
"""Variables that do not choose everything that Prometheus has."""


def render(prometheus: Prometheus, name: str, path: Path, *, start: float, end: float, rate_interval: str) -> None:
    """Writes the picture of one dashboard."""
    times = [start + number * (end - start) / POINTS for number in range(POINTS + 1)]
    board = load_dashboard(name)
    lines: dict[int, list[Line]] = {panel["id"]: [] for panel in board["panels"]}
    for query in panel_queries([name]):
        span = f"{math.ceil((end - start) / 60)}m"
        expr = substitute(query.expr, rate_interval=rate_interval, span=span, variables=CHOSEN.get(name))
        first = times[-1] if query.instant else start
        series = prometheus.query_range(expr, first, end, (end - start) / POINTS)
        lines[query.panel["id"]] += [_line(query, each, times) for each in series]
    panels = [(panel, lines[panel["id"]]) for panel in board["panels"]]
    shown = (datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC))
    draw_dashboard(board["title"], panels, shown).savefig(path, dpi=90)


def _line(query: PanelQuery, series: Mapping[str, Any], times: Sequence[float]) -> Line:
    """Returns a series on the picture's points of time, NaN where it has none."""
    values = {round(float(when), 1): float(value) for when, value in series["values"]}
    labels = series["metric"]
    name = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), query.legend).strip()
    return Line(
        name=name,
        times=[datetime.fromtimestamp(when, UTC) for when in times],
        values=[values.get(round(when, 1), math.nan) for when in times],
    )


def main() -> int:
    """Draws the dashboards; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draws what the dashboards show on a Prometheus.")
    parser.add_argument("--prometheus", default="http://localhost:9090", metavar="URL")
    parser.add_argument("--dashboards", nargs="+", default=list(DEFAULT), metavar="NAME", help="such as run gpu")
    parser.add_argument("--minutes", type=float, default=30, help="how far to look back (30)")
    parser.add_argument("--end", type=float, default=None, help="Unix time to look back from (now)")
    parser.add_argument("--rate-interval", default="1m", help="$__rate_interval: four scrapes or more (1m)")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures (docs/images)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.time() if options.end is None else options.end
    span = {"start": end - 60 * options.minutes, "end": end}
    try:
        for name in options.dashboards:
            path = options.out / f"dashboard-{name}.png"
            render(Prometheus(options.prometheus), name, path, **span, rate_interval=options.rate_interval)
            print(path)
    except QueryError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
