"""The committed dashboards: in step with the code that builds them, readable, and about metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry

from deploy.monitoring.board import choice
from deploy.monitoring.build_dashboards import BOARDS, FOLDER, encode
from deploy.monitoring.queries import DEFAULT, load_dashboard, panel_queries, substitute
from deploy.monitoring.units import format_value
from rlhf.serving.calls import RpcMetrics
from services.policy.metrics import PolicyMetrics
from services.reference.core import ReferenceMetrics
from services.reward.metrics import RewardMetrics
from services.trainer.service.control import RunControl
from services.trainer.telemetry.gauges import EVALUATION_METRICS, register_kl_budget, register_run_gauges
from services.trainer.telemetry.step import STEP_METRICS, TrainerMetrics

MONITORING = FOLDER.parent
NAMES = tuple(BOARDS)


def panels_of(name: str) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = load_dashboard(name)["panels"]
    return panels


def names_of_series(tmp_path: Path) -> set[str]:
    """The names under which Prometheus sees what the code registers."""
    registry = CollectorRegistry()
    for make in (RpcMetrics, PolicyMetrics, RewardMetrics, ReferenceMetrics):
        make(registry)
    trainer = TrainerMetrics(STEP_METRICS, registry)
    trainer.show(1, dict.fromkeys(STEP_METRICS, 0.0))
    trainer.evaluation.set(dict.fromkeys(EVALUATION_METRICS, 0.0))
    register_run_gauges(RunControl("r", "grpo", 1), tmp_path, registry)
    register_kl_budget(20.0, registry)
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes.get(family.type, ("",))}


def asked_for(text: str) -> set[str]:
    """The metrics of ours in an expression: not recorded ones, which have colons."""
    found = set(re.findall(r"(?<![\w:])rlhf_[a-z0-9_]+(?![\w:(])", text))
    for pattern in re.findall(r'__name__=~"([^"]+)"', text):
        prefix, _, rest = pattern.partition("(")
        found |= {prefix + end for end in rest.rstrip(")").split("|")}
    return found - {"rlhf_trainer_"}


def expressions() -> dict[str, str]:
    """Every expression of the dashboards and rules, by where it is."""
    found = {query.name + str(number): query.expr for number, query in enumerate(panel_queries(NAMES))}
    for path in sorted((MONITORING / "rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found |= {rule.get("alert") or rule["record"]: rule["expr"] for rule in group["rules"]}
    return found


def test_committed_dashboards_are_what_the_code_builds() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)
    for name, module in BOARDS.items():
        assert (FOLDER / f"{name}.json").read_text() == encode(module.build()), "run: make dashboards"


@pytest.mark.parametrize("name", NAMES)
def test_the_sdk_reads_a_dashboard_as_it_wrote_it(name: str) -> None:
    register_default_plugins()
    text = (FOLDER / f"{name}.json").read_text()
    assert encode(Dashboard.from_json(json.loads(text))) == text


@pytest.mark.parametrize("name", NAMES)
def test_a_panel_says_what_it_shows(name: str) -> None:
    panels = panels_of(name)
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]
        assert format_value(1.5, panel["fieldConfig"]["defaults"]["unit"]), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_panels_fill_the_width(name: str) -> None:
    rows: dict[int, list[dict[str, int]]] = {}
    for panel in panels_of(name):
        rows.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])
    for grids in rows.values():
        assert sum(grid["w"] for grid in grids) == 24
        assert len({grid["h"] for grid in grids}) == 1


def test_dashboards_link_to_one_another_and_have_their_own_addresses() -> None:
    boards = [load_dashboard(name) for name in NAMES]
    assert {board["uid"] for board in boards} == {f"rlhf-{name}" for name in NAMES}
    for board in boards:
        assert board["tags"] == ["rlhf"]
        assert board["links"][0]["tags"] == ["rlhf"]
        assert board["templating"]["list"][0]["current"]["value"] == "prometheus"


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_defined_and_used(name: str) -> None:
    board = load_dashboard(name)
    defined = {variable["name"] for variable in board["templating"]["list"]} - {"datasource"}
    used = set(re.findall(r"\$(\w+)", " ".join(query.expr for query in panel_queries([name]))))
    assert used - {"__rate_interval", "__range"} == defined


def test_every_metric_asked_for_exists_in_the_code(tmp_path: Path) -> None:
    known = names_of_series(tmp_path)
    for where, expr in expressions().items():
        assert asked_for(expr) <= known, where


def test_recorded_series_asked_for_are_recorded() -> None:
    recording = yaml.safe_load((MONITORING / "rules" / "recording.yaml").read_text())
    recorded = {rule["record"] for group in recording["groups"] for rule in group["rules"]}
    found = {name for expr in expressions().values() for name in re.findall(r"\w+:rlhf_\w+:\w+", expr)}
    assert found <= recorded


def test_gpu_queries_are_tested_on_made_up_series() -> None:
    tests = yaml.safe_load((MONITORING / "tests" / "gpu.yaml").read_text())["tests"]
    tested = {each["expr"] for test in tests for each in test["promql_expr_test"]}
    assert {substitute(query.expr) for query in panel_queries(["gpu"])} == tested
    assert "gpu" not in DEFAULT


def test_kustomization_has_every_dashboard() -> None:
    kustomization = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    files = {file for each in kustomization["configMapGenerator"] for file in each["files"]}
    assert files == {f"dashboards/{name}.json" for name in NAMES}


def test_all_of_a_choice_can_be_exactly_its_values() -> None:
    assert choice("job", "Service", "q").build().all_value == ".*"
    assert choice("job", "Service", "q", all_value=None).build().all_value is None
