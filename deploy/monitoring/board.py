"""What all dashboards have: data source, links to one another, marks where an alert fired, and the choice of a run."""

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from deploy.monitoring.panels import SOURCE

RATE = "$__rate_interval"
OURS = 'alertname=~"Rlhf.+"'


def make_board(
    name: str,
    title: str,
    description: str,
    variables: Sequence[Builder[models.VariableModel]],
    panels: Sequence[Builder[models.Panel]],
) -> models.Dashboard:
    """Returns a dashboard. Args: name: of its file and uid. panels: row by row; each says how wide it is."""
    board = dashboard.Dashboard(f"RLHF / {title}").uid(f"rlhf-{name}").description(description).tags(["rlhf"])
    board = board.editable().timezone("browser").time("now-1h", "now").refresh("30s")
    board = board.tooltip(models.DashboardCursorSync.CROSSHAIR)
    link = dashboard.DashboardLink("Dashboards").type(models.DashboardLinkType.DASHBOARDS).tags(["rlhf"])
    board = board.link(link.as_dropdown(False).keep_time(True).include_vars(True).tooltip("The other dashboards"))
    board = board.annotation(
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr(f'ALERTS{{{OURS}, alertstate="firing"}}')
    )
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    board = board.with_variable(source.current(models.VariableOption(text="Prometheus", value="prometheus")))
    for variable in variables:
        board = board.with_variable(variable)
    for panel in panels:
        board = board.with_panel(panel)
    built = board.build()
    for number, made in enumerate(built.panels or (), start=1):
        made.id_val = number
    return built


def only(name: str, label: str, query: str, default: str) -> dashboard.QueryVariable:
    """Returns a variable of which exactly one can be chosen."""
    chosen = models.VariableOption(text=default, value=default, selected=True)
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return variable.multi(False).include_all(False).current(chosen)


def choice(name: str, label: str, query: str, *, all_value: str | None = ".*") -> dashboard.QueryVariable:
    """Returns a variable of which any number can be chosen.

    Args:
        query: such as label_values(up, instance).
        all_value: what "All" stands for; None is exactly the values of the query.
    """
    everything = models.VariableOption(text="All", value="$__all", selected=True)
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    variable = variable.multi(True).include_all(True).current(everything)
    return variable if all_value is None else variable.all_value(all_value)


def run_choice() -> dashboard.QueryVariable:
    """Returns the choice of runs, for queries made by by_run()."""
    return choice("run", "Run", "label_values(rlhf_trainer_run_info, run)")


def by_run(metric: str, *, labels: Sequence[str] = ()) -> str:
    """Returns the query of a trainer's metric by the name of its run, which stays when a Job's pod is replaced."""
    kept = ", ".join(("run", *labels))
    return f'max by ({kept}) ({metric} * on (job, instance) group_left (run) rlhf_trainer_run_info{{run=~"$run"}})'


Panels = list[Any]
"""Builders of panels: the kinds have no common class but Builder."""
