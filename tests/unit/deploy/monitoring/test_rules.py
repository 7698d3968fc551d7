"""The alerts: each says what to do, is tested both ways, and reaches Kubernetes unchanged."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.build_rules import FOLDER, TARGET, prometheus_rule

ROOT = FOLDER.parents[1]


def alerts(text: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load(text)["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


ALERTS = alerts((FOLDER / "rules" / "alerts.yaml").read_text())
NAMES = [rule["alert"] for rule in ALERTS]


def outcomes(path: Path) -> list[tuple[str, bool]]:
    """Returns the alerts that a file of promtool tests looks at, and whether they are to fire."""
    tests = yaml.safe_load(path.read_text())["tests"]
    return [(each["alertname"], bool(each["exp_alerts"])) for test in tests for each in test.get("alert_rule_test", ())]


def test_alerts_have_names_of_their_own() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(name.startswith("Rlhf") for name in NAMES)


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    headings = [line.lstrip("# ").strip() for line in (ROOT / page).read_text().splitlines() if line.startswith("#")]
    assert rule["alert"] in headings


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    assert {line.lstrip("# ").strip() for line in lines if line.startswith("### Rlhf")} == set(NAMES)


def test_every_alert_is_seen_to_fire_and_to_keep_still() -> None:
    seen = {outcome for path in (FOLDER / "tests").glob("*.yaml") for outcome in outcomes(path)}
    assert seen == {(name, fires) for name in NAMES for fires in (True, False)}


def test_the_object_for_kubernetes_is_built_from_the_rules() -> None:
    assert TARGET.read_text() == prometheus_rule(), "run: make dashboards"
    built = yaml.safe_load(prometheus_rule())
    names = [rule.get("alert") or rule["record"] for group in built["spec"]["groups"] for rule in group["rules"]]
    assert names[-len(NAMES) :] == NAMES
    assert len(names) > len(NAMES)


def test_runbook_urls_get_the_address_of_the_repository() -> None:
    built = yaml.safe_load(prometheus_rule("https://git.example.org/rlhf/blob/main/"))
    rules = [rule for group in built["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    start = "https://git.example.org/rlhf/blob/main/docs/operations.md#"
    assert all(rule["annotations"]["runbook_url"].startswith(start) for rule in rules)
