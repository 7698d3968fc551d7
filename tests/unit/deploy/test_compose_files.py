"""The compose stack's files, read without an engine: what a reviewer would look for, and that ports are in step."""

import pytest
import yaml

from rlhf.config import Section, load_toml
from rlhf.serving.directory import REWARD
from rlhf.serving.directory import SERVICES as DIRECTORY
from services.reward.config import RewardConfig
from services.trainer.config.online import PpoRunConfig
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "compose"
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
SERVERS = {**DIRECTORY, "reward-gold": REWARD}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_rights_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert ":latest" not in service["image"]


def test_prometheus_reads_the_ports_that_the_services_listen_on() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    read = {job["job_name"]: job["dns_sd_configs"][0] for job in jobs if "dns_sd_configs" in job}
    assert {name: each["port"] for name, each in read.items()} == {
        name: server.metrics_port for name, server in SERVERS.items()
    }
    assert all(each["names"] == [name] for name, each in read.items())


def test_published_ports_are_those_of_the_services() -> None:
    published = {name: SERVICES[name]["ports"] for name in SERVERS}
    assert published["reward-gold"] == []
    for name, server in SERVERS.items():
        inside = {int(port.rpartition(":")[2]) for port in published[name]}
        assert inside <= {server.port, server.http_port}


def test_every_gpu_service_answers_to_the_name_of_the_cpu_one() -> None:
    for name in DIRECTORY:
        assert SERVICES[f"{name}-gpu"]["networks"]["services"]["aliases"] == [name]
        assert SERVICES[f"{name}-gpu"]["image"].endswith("-gpu")


@pytest.mark.parametrize(
    ("file", "cls"),
    [("run/run.toml", PpoRunConfig), ("config/reward-gold.toml", RewardConfig)],
)
def test_configurations_are_valid(file: str, cls: type[Section]) -> None:
    load_toml(cls, FOLDER / file)
