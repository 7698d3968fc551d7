"""What panels have in common when they are drawn: the card, axes, thresholds, legend and colours."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import matplotlib
import matplotlib.dates as dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deploy.monitoring.units import SUFFIX, format_value, plain

matplotlib.rcParams.update({"font.size": 7.5, "font.family": "DejaVu Sans"})

COLORS = {
    "green": "#56a64b",
    "orange": "#ff9830",
    "red": "#e02f44",
    "blue": "#3274d9",
    "text": "#24292e",
}
PALETTE = ("#56a64b", "#f2cc0c", "#3274d9", "#ff780a", "#e02f44", "#8f3bb8", "#37872d", "#1f78c1", "#ba43a9", "#705da0")
COLUMNS = 24
WIDTH_INCHES, ROW_INCHES, HEAD_INCHES = 15.0, 0.33, 0.45
LEGEND_ENTRIES = 12
STAT_VALUES = 6


def frame(figure: Figure, panel: Mapping[str, Any], box: tuple[float, float, float, float]) -> Axes:
    """Returns the axes of a panel, on a white card with a title."""
    left, top, width, height = box
    inches = figure.get_size_inches()
    gap_x, gap_y = 0.05 / inches[0], 0.05 / inches[1]
    card = figure.add_axes((left + gap_x, top - height + gap_y, width - 2 * gap_x, height - 2 * gap_y))
    card.set(xticks=[], yticks=[], facecolor="white")
    for spine in card.spines.values():
        spine.set_color("#d8d9da")
    card.text(0.08 / (width * inches[0]), 1 - 0.16 / (height * inches[1]), panel["title"], weight="bold", va="center")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if unit.startswith(SUFFIX) and panel["type"] == "timeseries":
        name = unit.removeprefix(SUFFIX).strip()
        card.text(
            1 - 0.08 / (width * inches[0]), 1 - 0.16 / (height * inches[1]), name, color="#777", va="center", ha="right"
        )
    pad_left = (1.5 if panel["type"] == "state-timeline" else 0.62) / inches[0]
    pad_right, pad_top = 0.5 / inches[0], 0.32 / inches[1]
    pad_bottom = (0.3 if panel["type"] == "stat" else 0.66) / inches[1]
    return figure.add_axes(
        (left + pad_left, top - height + pad_bottom, width - pad_left - pad_right, height - pad_top - pad_bottom)
    )


def value_axis(axes: Axes, defaults: Mapping[str, Any], unit: str, *, flat: bool) -> None:
    """Dresses the axis of values. Args: flat: all values are 0, and the thresholds say how far the axis goes."""
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(float(value), unit)))
    low, high = axes.get_ylim()
    if flat:
        steps = defaults.get("thresholds", {}).get("steps", ())
        low, high = -1.0, 1.2 * max((step["value"] for step in steps if step.get("value") is not None), default=1.0)
    axes.set_ylim(low if defaults.get("min") is None else defaults["min"], defaults.get("max") or high)
    axes.grid(visible=True, color="#e5e5e5", linewidth=0.6)
    axes.tick_params(length=0, colors="#555", labelsize=6.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _tick(value: float, unit: str) -> str:
    """Returns a value at an axis; units that are words stand beside the title."""
    return plain(value) if unit.startswith(SUFFIX) else format_value(value, unit)


def time_axis(axes: Axes, span: tuple[datetime, datetime]) -> None:
    """Dresses the axis of time."""
    axes.set_xlim(*(dates.date2num(each) for each in span))
    minutes = (span[1] - span[0]).total_seconds() / 60
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=8))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S" if minutes < 10 else "%H:%M", tz=UTC))


def thresholds(axes: Axes, defaults: Mapping[str, Any]) -> None:
    """Draws the thresholds that the panel shows as lines."""
    if defaults["custom"].get("thresholdsStyle", {}).get("mode") != "dashed":
        return
    low, high = axes.get_ylim()
    for step in defaults["thresholds"]["steps"]:
        if step.get("value") is not None and low <= step["value"] <= high:
            axes.axhline(step["value"], color=COLORS[step["color"]], linestyle=(0, (4, 4)), linewidth=0.9)


def legend(axes: Axes, handles: Sequence[tuple[Any, str]]) -> None:
    """Puts the series' names under the axes."""
    shown = handles[:LEGEND_ENTRIES]
    texts = [text.split("  ")[0] if len(shown) > 4 else text for _, text in shown]  # many: the names alone
    inches = axes.get_position().width * WIDTH_INCHES + 0.9
    columns = max(1, min(len(shown), int(inches / (max(map(len, texts)) / 19 + 0.42))))
    axes.legend(
        [handle for handle, _ in shown], texts,
        loc="upper left", bbox_to_anchor=(-0.5 / inches, -0.13), ncols=columns, frameon=False, fontsize=6.5,
        handlelength=1.2, borderaxespad=0, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip
