import pytest

from rlhf.client import codec
from rlhf.errors import InternalError
from rlhf.rollout import Prompt, Rollout, Sampling
from rlhf.v1 import policy_pb2, rollout_pb2


def rollout(**changes: object) -> Rollout:
    fields: dict[str, object] = {
        "rollout_id": "g/0",
        "group_id": "g",
        "prompt_ids": [1, 2],
        "completion_ids": [3, 4, 5],
        "logprobs": [-0.5, -0.25, -0.125],
        "policy_versions": [7, 7, 8],
        "finish_reason": "stop",
    }
    return Rollout(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_rollout_survives_the_wire_and_its_versions_are_run_length_coded():
    message = codec.encode_rollout(rollout())
    assert [(span.policy_version, span.token_count) for span in message.policy_versions] == [(7, 2), (8, 1)]
    assert codec.decode_rollout(rollout_pb2.Rollout.FromString(message.SerializeToString())) == rollout()


@pytest.mark.parametrize(
    "changes",
    [{"logprobs": [-0.5]}, {"policy_versions": [7]}, {"completion_ids": [], "logprobs": [], "policy_versions": []}],
)
def test_per_token_lists_of_unequal_length_are_refused(changes):
    with pytest.raises(InternalError, match="must be equal and at least 1"):
        codec.decode_rollout(codec.encode_rollout(rollout(**changes)))


def test_an_unspecified_finish_reason_is_refused():
    message = codec.encode_rollout(rollout())
    message.finish_reason = rollout_pb2.FINISH_REASON_UNSPECIFIED
    with pytest.raises(InternalError, match="finish_reason 0; expected 1 or 2"):
        codec.decode_rollout(message)


def test_temperature_zero_and_seed_zero_are_not_taken_for_absent():
    sampling = Sampling(max_new_tokens=4, temperature=0.0)
    assert codec.decode_sampling(codec.encode_sampling(sampling)) == sampling
    prompt = Prompt(group_id="g", prompt_ids=[1], seed=0)
    assert codec.decode_prompt(codec.encode_prompt(prompt)) == prompt


def test_absent_sampling_fields_take_their_defaults():
    assert codec.decode_sampling(policy_pb2.SamplingParams(max_new_tokens=4)) == Sampling(max_new_tokens=4)
    assert codec.decode_prompt(policy_pb2.Prompt(group_id="g", prompt_ids=[1])).seed is None
