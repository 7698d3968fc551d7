"""What asks a Prometheus for the panels' data, and draws it."""

import json
import math
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.monitoring.drawing import Line, draw_dashboard
from deploy.monitoring.queries import (
    DEFAULT,
    Prometheus,
    QueryError,
    load_dashboard,
    panel_queries,
    substitute,
    without_data,
)
from deploy.monitoring.render import render
from deploy.monitoring.units import format_value


class FakePrometheus(BaseHTTPRequestHandler):
    """Answers every query with two series, but NaN for KL, and nothing for rewards."""

    def do_POST(self) -> None:
        body = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        expr, start, end, step = (body[name][0] for name in ("query", "start", "end", "step"))
        count = round((float(end) - float(start)) / float(step)) + 1
        value = "NaN" if "rlhf_trainer_kl" in expr else "1"
        values = [[float(start) + number * float(step), value] for number in range(count)]
        labels = [{"run": run, "instance": run, "le": bound} for run, bound in (("one", "0.5"), ("two", "+Inf"))]
        result = [] if "rlhf_reward_" in expr else [{"metric": each, "values": values} for each in labels]
        reply = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    server = HTTPServer(("127.0.0.1", 0), FakePrometheus)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Prometheus(f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()
    thread.join()
    server.server_close()


def test_variables_become_what_grafana_would_send() -> None:
    expr = 'rate(a{job="$job", run=~"$run"}[$__rate_interval]) > max_over_time(b[$__range])'
    assert substitute(expr, rate_interval="20s", span="2h", variables={"job": "x|y"}) == (
        'rate(a{job=~"x|y", run=~".*"}[20s]) > max_over_time(b[2h])'
    )


def test_queries_without_a_number_are_found(prometheus: Prometheus) -> None:
    queries = list(panel_queries(["run", "reward"]))
    empty = without_data(prometheus, queries, minutes=1)
    assert empty == [each for each in queries if "rlhf_trainer_kl" in each.expr or "rlhf_reward_" in each.expr]


def test_a_prometheus_that_is_not_there_is_named() -> None:
    with pytest.raises(QueryError, match=r"no Prometheus answers at http://127\.0\.0\.1:1 "):
        Prometheus("http://127.0.0.1:1").query_range("up", 0, 1, 1)


def test_queries_of_vllm_are_told_apart() -> None:
    assert {query.panel["title"].partition(":")[0] for query in panel_queries(DEFAULT) if query.needs_vllm} == {"vLLM"}


@pytest.mark.parametrize("name", ["services", "reward"])
def test_a_dashboard_is_drawn(name: str, prometheus: Prometheus, tmp_path: Path) -> None:
    render(prometheus, name, tmp_path / "board.png", start=1_000_000, end=1_000_600, rate_interval="1m")
    assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")


def test_every_kind_of_panel_is_drawn_with_and_without_data() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = [start + timedelta(minutes=number) for number in range(3)]
    for name in ("run", "services", "reward"):
        panels = load_dashboard(name)["panels"]
        lines = [Line("1", times, [1.0, math.nan, 0.0])]
        for given in (lines, []):
            figure = draw_dashboard(name, [(panel, given) for panel in panels], (times[0], times[-1]))
            texts = {text.get_text() for axes in figure.axes for text in axes.texts}
            assert {panel["title"] for panel in panels} <= texts
            assert ("No data" in texts) == (not given)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.256, "percentunit", "25.6%"),
        (95.0, "s", "1.58 min"),
        (0.0021, "s", "2.1 ms"),
        (3 * 1024**3, "bytes", "3 GiB"),
        (1_250_000, "short", "1.25 M"),
        (12.5, "suffix: nats", "12.5 nats"),
        (math.nan, "s", "nan"),
        (0, "bytes", "0 B"),
    ],
)
def test_values_are_written_for_readers(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text
