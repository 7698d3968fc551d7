"""Draws a dashboard's panels with matplotlib: where Grafana would put them, from what their queries returned."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import matplotlib.dates as dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploy.monitoring.canvas import (
    COLORS,
    COLUMNS,
    HEAD_INCHES,
    PALETTE,
    ROW_INCHES,
    STAT_VALUES,
    WIDTH_INCHES,
    frame,
    legend,
    thresholds,
    time_axis,
    value_axis,
)
from deploy.monitoring.units import format_value

NO_DATA = "No data"


@dataclass(frozen=True, slots=True)
class Line:
    """A series of a panel."""

    name: str
    times: Sequence[datetime]
    values: Sequence[float]

    @property
    def last(self) -> float:
        """The newest value; NaN if there is none."""
        return next((value for value in reversed(self.values) if not math.isnan(value)), math.nan)


def draw_dashboard(
    title: str, panels: Sequence[tuple[Mapping[str, Any], Sequence[Line]]], span: tuple[datetime, datetime]
) -> Figure:
    """Returns the picture of a dashboard. Args: panels: each as in the JSON, with its series. span: what is shown."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    height = rows * ROW_INCHES + HEAD_INCHES
    figure = Figure(figsize=(WIDTH_INCHES, height), facecolor="#f4f5f5")
    figure.text(0.008, 1 - 0.6 * HEAD_INCHES / height, title, fontsize=13, weight="bold", va="center")
    shown = f"{span[0]:%Y-%m-%d %H:%M} to {span[1]:%H:%M} UTC"
    figure.text(0.992, 1 - 0.6 * HEAD_INCHES / height, shown, fontsize=9, color="#555", va="center", ha="right")
    for panel, lines in panels:
        grid = panel["gridPos"]
        left, width = grid["x"] / COLUMNS, grid["w"] / COLUMNS
        top = 1 - (HEAD_INCHES + grid["y"] * ROW_INCHES) / height
        axes = frame(figure, panel, (left, top, width, grid["h"] * ROW_INCHES / height))
        DRAWERS[panel["type"]](axes, panel, lines)
        if panel["type"] in ("timeseries", "heatmap", "state-timeline") and lines:
            time_axis(axes, span)
    return figure


def _draw_time_series(axes: Axes, panel: Mapping[str, Any], lines: Sequence[Line]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    if not lines:
        return _draw_nothing(axes)
    styles = [_style(panel, line.name, number) for number, line in enumerate(lines)]
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    right = axes.twinx() if any(style["right"] for style in styles) else None
    handles: list[tuple[Any, str]] = []
    base: list[float] = []
    for line, style in zip(lines, styles, strict=True):
        target = right if style["right"] and right is not None else axes
        values = list(line.values)
        if stacked and not style["dashed"]:
            base = base or [0.0] * len(values)
            below = base
            base = [low + (0 if math.isnan(value) else value) for low, value in zip(base, values, strict=True)]
            target.fill_between(dates.date2num(line.times), below, base, color=style["color"], alpha=0.4, linewidth=0)
            values = base
        dots = "." if sum(not math.isnan(value) for value in values) <= 3 else ""
        dashes = "--" if style["dashed"] else "-"
        (handle,) = target.plot(dates.date2num(line.times), values, dots + dashes, color=style["color"], linewidth=1.3)
        handles.append((handle, f"{line.name}  {format_value(line.last, style['unit'])}"))
    value_axis(
        axes, defaults, defaults["unit"], flat=not any(abs(value) > 1e-6 for line in lines for value in line.values)
    )
    if right is not None:
        right_unit = next(style["unit"] for style in styles if style["right"])
        value_axis(right, {"min": defaults.get("min")}, right_unit, flat=False)
        right.grid(visible=False)
    thresholds(axes, defaults)
    legend(axes, handles)


def _draw_nothing(axes: Axes) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, NO_DATA, ha="center", va="center", color="#888", fontsize=10, transform=axes.transAxes)


def _style(panel: Mapping[str, Any], name: str, number: int) -> dict[str, Any]:
    """Returns how a series is drawn: colour, dashes, which axis, unit."""
    style = {
        "color": PALETTE[number % len(PALETTE)],
        "dashed": False,
        "right": False,
        "unit": panel["fieldConfig"]["defaults"]["unit"],
    }
    for override in panel["fieldConfig"]["overrides"]:
        if not re.fullmatch(override["matcher"]["options"], name):
            continue
        for setting in override["properties"]:
            value = setting["value"]
            if setting["id"] == "color":
                style["color"] = COLORS[value["fixedColor"]]
            elif setting["id"] == "custom.lineStyle":
                style["dashed"] = value["fill"] == "dash"
            elif setting["id"] == "custom.axisPlacement":
                style["right"] = value == "right"
            elif setting["id"] == "unit":
                style["unit"] = value
    return style


def _draw_stat(axes: Axes, panel: Mapping[str, Any], lines: Sequence[Line]) -> None:
    axes.axis("off")
    defaults, options = panel["fieldConfig"]["defaults"], panel["options"]
    if not lines:
        axes.text(0.5, 0.5, defaults.get("noValue", NO_DATA), ha="center", va="center", fontsize=14, color="#888")
        return
    for number, line in enumerate(lines[:STAT_VALUES]):
        color = _threshold_color(defaults["thresholds"]["steps"], line.last)
        color = _stat_override(panel, line.name) or color
        text = line.name if options["textMode"] == "name" else format_value(line.last, defaults["unit"])
        middle = (number + 0.5) / min(len(lines), STAT_VALUES)
        size = min(17 if len(lines) == 1 else 13, 240 / len(text))
        axes.text(middle, 0.5, text, ha="center", va="center", fontsize=size, weight="bold", color=COLORS[color])
        if len(lines) > 1 and options["textMode"] != "name":
            axes.text(middle, 0.0, line.name, ha="center", va="center", fontsize=7, color="#555")


def _threshold_color(steps: Sequence[Mapping[str, Any]], value: float) -> str:
    reached = [step["color"] for step in steps if step.get("value") is None or value >= step["value"]]
    return str(reached[-1])


def _stat_override(panel: Mapping[str, Any], name: str) -> str | None:
    for override in panel["fieldConfig"]["overrides"]:
        if re.fullmatch(override["matcher"]["options"], name):
            return str(override["properties"][0]["value"]["fixedColor"])
    return None


def _draw_states(axes: Axes, panel: Mapping[str, Any], lines: Sequence[Line]) -> None:
    if not lines:
        return _draw_nothing(axes)
    texts = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for row, line in enumerate(lines):
        width = dates.date2num(line.times[1]) - dates.date2num(line.times[0])
        states = zip(line.times, line.values, strict=True)
        for value, period in groupby(states, key=lambda state: str(state[1])):
            first, *others = [dates.date2num(time) for time, _ in period]
            if value != "nan":
                color = COLORS[texts[f"{float(value):g}"]["color"]]
                axes.barh(row, width * (1 + len(others)), left=first, height=0.7, color=color, linewidth=0)
    axes.set_yticks(range(len(lines)), [line.name for line in lines], fontsize=6.5)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.xaxis_date(tz=UTC)
    axes.tick_params(length=0, colors="#555", labelsize=6.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    handles = [(axes.barh(0, 0, color=COLORS[each["color"]]), each["text"]) for each in texts.values()]
    legend(axes, handles)


def _draw_heatmap(axes: Axes, panel: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """Draws buckets, which Prometheus counts up to their bound, as Grafana does: each without those below it."""
    ordered = sorted((line for line in lines if line.name != "+Inf"), key=lambda line: float(line.name))
    if not ordered:
        return _draw_nothing(axes)
    below = [0.0] * len(ordered[0].times)
    cells = []
    for line in ordered:
        cells.append([max(0.0, value - low) for value, low in zip(line.values, below, strict=True)])
        below = list(line.values)
    times = dates.date2num(ordered[0].times)
    masked = [[value if value > 0 else math.nan for value in row] for row in cells]
    axes.pcolormesh(times, range(len(ordered)), masked, cmap="Blues", shading="nearest", vmin=0)
    every = max(1, len(ordered) // 9)
    axes.set_yticks(range(0, len(ordered), every), [line.name for line in ordered][::every])
    axes.xaxis_date(tz=UTC)
    axes.tick_params(length=0, colors="#555", labelsize=6.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


DRAWERS = {
    "timeseries": _draw_time_series,
    "stat": _draw_stat,
    "state-timeline": _draw_states,
    "heatmap": _draw_heatmap,
}
