"""What each method of each service needs: none is left open by being forgotten."""

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from rlhf.serving.auth import SCOPES
from rlhf.v1 import policy_pb2, reference_pb2, reward_pb2, trainer_pb2
from services.policy.server import SCOPE_OF_METHOD as POLICY
from services.reference.server import SCOPE_OF_METHOD as REFERENCE
from services.reward.server import SCOPE_OF_METHOD as REWARD
from services.trainer.service.servicer import SCOPE_OF_METHOD as TRAINER


@pytest.mark.parametrize(
    ("descriptor", "scope_of_method"),
    [
        (policy_pb2.DESCRIPTOR.services_by_name["PolicyService"], POLICY),
        (reference_pb2.DESCRIPTOR.services_by_name["ReferenceService"], REFERENCE),
        (reward_pb2.DESCRIPTOR.services_by_name["RewardService"], REWARD),
        (trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"], TRAINER),
    ],
    ids=["policy", "reference", "reward", "trainer"],
)
def test_every_method_of_a_service_needs_a_known_scope(descriptor: ServiceDescriptor, scope_of_method):
    assert set(scope_of_method) == {method.name for method in descriptor.methods}
    assert set(scope_of_method.values()) <= SCOPES


def test_what_changes_what_is_learned_is_the_admins():
    admins = [
        {method for method, scope in service.items() if scope == "admin"} for service in (POLICY, REFERENCE, REWARD)
    ]
    assert admins == [{"UpdateWeights"}, set(), {"LoadModel"}]
    assert {method for method, scope in TRAINER.items() if scope == "admin"} == {
        "Pause",
        "Resume",
        "SaveCheckpoint",
        "Stop",
    }
