"""Every panel's queries of the committed dashboards, with Grafana's variables filled in as Grafana would."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "dashboards"
# No GPU is in the stacks under test: its expressions are tested by promtool on synthetic series instead.
WITHOUT_DATA = ("gpu.json",)

_BUILT_IN = {
    "__rate_interval": "1m",
    "__interval": "5s",
    "__interval_ms": "5000",
    "__range": "10m",
    "__range_s": "600",
}
_VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")
_EQUALS_VARIABLE = re.compile(r"(?<!!)=\s*\"(\$\{?\w+(?::\w+)?\}?)\"")


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    panel: str
    expression: str
    """PromQL without variables."""

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.panel}: {self.expression}"


def panel_queries(folder: Path = DASHBOARDS) -> list[PanelQuery]:
    """Returns the queries of all dashboards in a folder, in their order."""
    queries = []
    for path in sorted(folder.glob("*.json")):
        if path.name not in WITHOUT_DATA:
            for panel in _panels(json.loads(path.read_text(encoding="utf-8"))):
                for target in panel.get("targets", ()):
                    queries.append(PanelQuery(path.name, panel["title"], fill(target["expr"])))
    return queries


def fill(expression: str) -> str:
    """Returns a query with Grafana's variables filled in; a dashboard's own ones match everything, like "All"."""
    expression = _EQUALS_VARIABLE.sub(r'=~"\1"', expression)
    return _VARIABLE.sub(lambda match: _BUILT_IN.get(match[1] or match[2], ".*"), expression)


def _panels(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the panels of a dashboard, those inside rows too."""
    for panel in node.get("panels", ()):
        yield panel
        yield from _panels(panel)
