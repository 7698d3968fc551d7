"""Which services a pipeline starts, which it gives again, and how long they stay; no process is started."""

import io
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from rlhf.config import load_values
from rlhf_cli.local.services import read_services
from rlhf_cli.local.supervisor import ServiceSpec, Supervisor
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.services import PipelineServices


class FakeSupervisor:
    """Notes what is started and ended."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.num_started = 0

    def start(self, spec: ServiceSpec) -> None:
        assert spec.name not in self.running
        self.running.append(spec.name)
        self.num_started += 1

    def end(self, *names: str) -> None:
        for name in names:
            self.running.remove(name)


def services_of(tmp_path: Path, **services: Any) -> tuple[PipelineServices, FakeSupervisor]:
    values = {"run_dir": str(tmp_path), "model": "m", "evaluate": {"enabled": False}, "prompts": {"path": "p"}}
    config = load_values(PipelineConfig, {**values, "services": services}, "p.toml")
    supervisor = FakeSupervisor()
    phases = Phases(Console(file=io.StringIO()))
    return PipelineServices(config, cast("Supervisor", supervisor), phases), supervisor


def test_services_are_gone_after_a_stage_and_started_again_for_the_next(tmp_path: Path) -> None:
    services, supervisor = services_of(tmp_path)
    services.policies(tmp_path)
    services.reference(tmp_path)
    assert supervisor.running == [entry.name for entry in read_services(services.file)] == ["policy", "reference"]
    services.end_stage()
    assert supervisor.running == []
    services.policies(tmp_path)
    assert (supervisor.running, supervisor.num_started) == (["policy"], 3)


def test_services_that_are_kept_are_given_again_unless_they_serve_something_else(tmp_path: Path) -> None:
    services, supervisor = services_of(tmp_path, keep=True)
    policies, reference = services.policies(tmp_path), services.reference(tmp_path)
    services.end_stage()
    assert (services.policies(tmp_path), services.reference(tmp_path)) == (policies, reference)
    assert supervisor.num_started == 2
    services.reference(tmp_path / "other")
    assert (supervisor.running, supervisor.num_started) == (["policy", "reference"], 3)


def test_services_that_have_an_address_are_not_started(tmp_path: Path) -> None:
    addresses = {"policy_targets": ["a:1"], "reference_target": "b:1", "reward_target": "c:1"}
    services, supervisor = services_of(tmp_path, **addresses)
    found = (services.policies(tmp_path), services.reference(tmp_path), services.reward(tmp_path))
    assert (found, supervisor.num_started) == ((["a:1"], "b:1", "c:1"), 0)
