"""How a panel looks in all of our dashboards: one function for each kind."""

from collections.abc import Iterable
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import (
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Query = tuple[str, str]
"""A PromQL expression, and what the legend calls each of its series."""
Steps = tuple[tuple[float | None, str], ...]
"""Colours with the value from which each holds; None is everything below the second."""

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GOOD: Steps = ((None, "green"),)
PLAIN: Steps = ((None, "text"),)


def time_series(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    low: float | None = None,
    high: float | None = None,
    steps: Steps | None = None,
    stacked: bool = False,
    limits: Iterable[str] = (),
    right: tuple[str, str] | None = None,
) -> timeseries.Panel:
    """Returns lines over time.

    Args:
        width: of 24. low, high: ends of the axis. stacked: areas on top of each other.
        steps: colours behind the lines, from a value on.
        limits: regular expressions of series that are limits: dashed, red, never stacked.
        right: a regular expression of series that have an axis of their own, and its unit.
    """
    panel = timeseries.Panel().title(title).description(description).unit(unit).span(width).height(8)
    panel = panel.datasource(SOURCE).targets(_targets(queries, instant=False))
    legend = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    panel = panel.legend(legend.placement(common.LegendPlacement.BOTTOM).calcs(["lastNotNull"]))
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel = panel.tooltip(tooltip.sort(common.SortOrder.DESCENDING))
    panel = panel.line_width(2).show_points(common.VisibilityMode.AUTO).span_nulls(False)
    panel = panel.fill_opacity(40 if stacked else 5).thresholds(_thresholds(steps or GOOD))
    if low is not None:
        panel = panel.min(low)
    if high is not None:
        panel = panel.max(high)
    if steps is not None:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    for limit in limits:
        panel = panel.override_by_regexp(limit, _limit_style())
    if right is not None:
        series, right_unit = right
        panel = panel.override_by_regexp(
            series, _properties({"custom.axisPlacement": "right", "unit": right_unit, "custom.axisLabel": ""})
        )
    return panel


def stat_panel(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 4,
    steps: Steps = PLAIN,
    decimals: int | None = None,
    no_value: str = "none",
    names: bool = False,
    colors: dict[str, str] | None = None,
) -> stat.Panel:
    """Returns the present value in large type.

    Args:
        steps: colours from a value on. no_value: what stands there without data.
        names: show the series' names in place of their values. colors: of series whose name matches an expression.
    """
    panel = stat.Panel().title(title).description(description).unit(unit).span(width).height(4)
    panel = panel.datasource(SOURCE).targets(_targets(queries, instant=True)).no_value(no_value)
    panel = panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.graph_mode(common.BigValueGraphMode.NONE).thresholds(_thresholds(steps))
    panel = panel.color_mode(common.BigValueColorMode.BACKGROUND if steps != PLAIN else common.BigValueColorMode.VALUE)
    panel = panel.text_mode(common.BigValueTextMode.NAME if names else common.BigValueTextMode.AUTO)
    if decimals is not None:
        panel = panel.decimals(decimals)
    for series, color in (colors or {}).items():
        panel = panel.override_by_regexp(series, _properties({"color": {"mode": "fixed", "fixedColor": color}}))
    return panel


def state_panel(
    title: str, description: str, *queries: Query, texts: dict[str, tuple[str, str]], width: int = 24
) -> statetimeline.Panel:
    """Returns bars over time. Args: texts: for each value what it means and its colour."""
    results = {
        value: models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    panel = statetimeline.Panel().title(title).description(description).unit("short").span(width).height(6)
    panel = (
        panel.datasource(SOURCE).targets(_targets(queries, instant=False)).mappings([models.ValueMap(options=results)])
    )
    panel = (
        panel.show_value(common.VisibilityMode.NEVER).row_height(0.8).fill_opacity(80).thresholds(_thresholds(PLAIN))
    )
    legend = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    return panel.legend(legend.placement(common.LegendPlacement.BOTTOM))


def heatmap_panel(title: str, description: str, unit: str, query: Query, *, width: int = 12) -> heatmap.Panel:
    """Returns a histogram over time, from a query of buckets by `le`."""
    panel = heatmap.Panel().title(title).description(description).unit(unit).span(width).height(8)
    target = _target(0, query, instant=False).format(PromQueryFormat.HEATMAP)
    color = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    axis = heatmap.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT)
    panel = panel.datasource(SOURCE).targets([target]).calculate(False).color(color.exponent(0.5)).y_axis(axis)
    panel = panel.scale_distribution(common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LINEAR))
    return panel.cell_gap(1).thresholds(_thresholds(PLAIN)).show_legend()


def _targets(queries: Iterable[Query], *, instant: bool) -> list[Builder[Dataquery]]:
    return [_target(number, query, instant=instant) for number, query in enumerate(queries)]


def _target(number: int, query: Query, *, instant: bool) -> prometheus.Dataquery:
    expr, legend = query
    target = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ascii_uppercase[number]).datasource(SOURCE)
    return target.instant() if instant else target.range()


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    config = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    return config.steps([models.Threshold(value=value, color=color) for value, color in steps])


def _limit_style() -> list[models.DynamicConfigValue]:
    return _properties(
        {
            "color": {"mode": "fixed", "fixedColor": "red"},
            "custom.lineStyle": {"fill": "dash", "dash": [8, 8]},
            "custom.fillOpacity": 0,
            "custom.stacking": {"mode": "none", "group": "A"},
        }
    )


def _properties(values: dict[str, object]) -> list[models.DynamicConfigValue]:
    return [models.DynamicConfigValue(id_val=name, value=value) for name, value in values.items()]
