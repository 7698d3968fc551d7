"""The directory of services against everything that must name them: no service is forgotten anywhere."""

import subprocess
import sys
from dataclasses import replace

import pytest

from rlhf.config import Section
from rlhf.serving.directory import POLICY, REFERENCE, REWARD, SERVICES, TRAINER, Service
from services.policy.config import PolicyServerConfig
from services.reference.config import ReferenceServerConfig
from services.reward.config import RewardHttpConfig, RewardServerConfig
from services.trainer.config.sections import TrainerServerConfig
from tests.support.deployed import missing
from tests.support.paths import ROOT


def test_every_service_is_everywhere_it_must_be() -> None:
    faults = missing(SERVICES.values(), ROOT)
    assert not faults, "\n".join(faults)


def test_a_service_that_is_planted_in_the_directory_is_missed_in_every_place() -> None:
    toy = Service(
        name="toy", purpose="Plays.", port=50059, metrics_port=9059, http_port=8059, scope_of_method={"Play": "score"}
    )
    sentences = missing([toy], ROOT)
    assert all(sentence.startswith("toy: ") for sentence in sentences)
    assert {sentence.removeprefix("toy: ").split(" ")[0].rstrip(":") for sentence in sentences} == {
        "services/toy/server.py",
        "protos/rlhf/v1/toy.proto",
        "rlhf/client/toy.py",
        "pyproject.toml",
        "rlhf_cli/commands/status.py",
        "deploy/docker/Dockerfile",
        "scripts/images",
        "deploy/compose/compose.yaml",
        "deploy/compose/compose.tls.yaml",
        "deploy/compose/make-certificates",
        "deploy/compose/prometheus/prometheus.yml",
        "deploy/k8s/base/kustomization.yaml",
        "deploy/k8s/base/toy.yaml",
        "deploy/k8s/base/config/toy.toml",
        "deploy/k8s/base/network.yaml",
        "deploy/k8s/components/mtls/certificates.yaml",
        "deploy/k8s/components/mtls/services.yaml",
        "deploy/monitoring/rules/alerts.yaml",
    }


def test_a_port_that_is_changed_in_the_directory_alone_is_missed_where_it_stands() -> None:
    sentences = missing([replace(REWARD, port=50152)], ROOT)
    assert sentences == [
        "reward: deploy/docker/Dockerfile: target reward lacks ENV RLHF_PROBE_TARGET=localhost:50152",
        "reward: deploy/docker/Dockerfile: target reward lacks EXPOSE 50152 8052 9052",
        "reward: deploy/compose/compose.yaml: reward does not publish port 50152",
        "reward: deploy/k8s/base/reward.yaml: the pod's ports are {'grpc': 50052, 'http': 8052, 'metrics': 9052}, "
        "not {'grpc': 50152, 'metrics': 9052, 'http': 8052}",
        "reward: deploy/k8s/base/reward.yaml has no Service reward with port 50152",
        "reward: deploy/k8s/base/network.yaml lets nobody reach port 50152 of reward",
    ]


def test_no_two_services_share_a_port() -> None:
    ports = [port for each in SERVICES.values() for port in (each.port, each.metrics_port, each.http_port) if port]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize(
    ("service", "server"),
    [
        (POLICY, PolicyServerConfig()),
        (REWARD, RewardServerConfig()),
        (REFERENCE, ReferenceServerConfig()),
        (TRAINER, TrainerServerConfig()),
    ],
)
def test_a_server_listens_where_the_directory_says(service: Service, server: Section) -> None:
    assert (server.port, server.metrics_port) == (service.port, service.metrics_port)
    assert REWARD.http_port == RewardHttpConfig().port


def test_the_directory_loads_next_to_nothing() -> None:
    script = "import sys, rlhf.serving.directory; print(sorted({'grpc', 'torch', 'pydantic'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found == "[]\n"
