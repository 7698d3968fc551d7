"""Writes kubernetes/prometheus-rule.yaml from rules/*.yaml: make dashboards. Needs PyYAML."""

import argparse
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
TARGET = FOLDER / "kubernetes" / "prometheus-rule.yaml"
LABELS = {"app.kubernetes.io/name": "rlhf-services", "app.kubernetes.io/component": "monitoring"}
HEAD = "# Built by `make dashboards` from rules/*.yaml; change those.\n"


def prometheus_rule(runbook_base: str = "") -> str:
    """Returns the object that the Prometheus operator loads, as YAML.

    Args: runbook_base: put before docs/operations.md in every runbook_url, such as https://git.example.org/rlhf/blob/main.
    """
    groups: list[dict[str, Any]] = []
    for name in ("recording", "alerts"):
        groups += yaml.safe_load((FOLDER / "rules" / f"{name}.yaml").read_text())["groups"]
    if runbook_base:
        for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
            annotations = rule["annotations"]
            annotations["runbook_url"] = f"{runbook_base.rstrip('/')}/{annotations['runbook_url']}"
    rule_object = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "rlhf-services", "labels": LABELS},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.safe_dump(rule_object, sort_keys=False, width=10_000)


def main() -> None:
    """Writes the object."""
    parser = argparse.ArgumentParser(description="Builds the PrometheusRule for Kubernetes.")
    parser.add_argument("--runbook-base", default="", metavar="URL", help="address of the repository's files")
    TARGET.write_text(prometheus_rule(parser.parse_args().runbook_base))
    print(TARGET)


if __name__ == "__main__":
    main()
