"""What each method of each service needs: none is left open by being forgotten."""

import importlib

import pytest

from rlhf.serving.directory import SCOPES, SERVICES, Service


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_every_method_of_a_service_needs_a_known_scope(service: Service):
    contract = importlib.import_module(f"rlhf.v1.{service.name}_pb2").DESCRIPTOR
    descriptor = contract.services_by_name[service.full_name.rpartition(".")[2]]
    assert descriptor.full_name == service.full_name
    assert set(service.scope_of_method) == {method.name for method in descriptor.methods}
    assert set(service.scope_of_method.values()) <= SCOPES


def test_a_client_may_be_given_these_scopes():
    assert {"admin", "generate", "score", "watch"} == SCOPES


def test_what_changes_what_is_learned_is_the_admins():
    assert {
        name: {method for method, scope in service.scope_of_method.items() if scope == "admin"}
        for name, service in SERVICES.items()
    } == {
        "policy": {"UpdateWeights"},
        "reference": set(),
        "reward": {"LoadModel"},
        "trainer": {"Pause", "Resume", "SaveCheckpoint", "Stop"},
    }
