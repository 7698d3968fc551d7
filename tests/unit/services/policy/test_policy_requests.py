from dataclasses import replace

import pytest

from rlhf.errors import InvalidRequestError, PreconditionError
from rlhf.rollout import Prompt, Sampling
from services.policy.config import LimitsConfig
from services.policy.generator import GenerateJob, check_job
from tests.unit.services.policy.fake_engine import INFO

LIMITS = LimitsConfig(max_prompts=4, max_in_flight=10)
PROMPT = Prompt(group_id="g", prompt_ids=[5, 6, 7])
SAMPLING = Sampling(max_new_tokens=4)
JOB = GenerateJob(request_id="r", prompts=[PROMPT], sampling=SAMPLING)


def with_prompts(*changes: dict[str, object]) -> GenerateJob:
    return replace(JOB, prompts=[replace(PROMPT, **change) for change in changes])


def with_sampling(**changes: object) -> GenerateJob:
    return replace(JOB, sampling=replace(SAMPLING, **changes))


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        with_sampling(temperature=0.0),
        with_sampling(temperature=10.0, completions_per_prompt=10),
        with_sampling(max_new_tokens=13),  # 3 + 13 = 16, the most
        with_prompts({"prompt_ids": [0, 99]}, {"group_id": "h", "seed": 2**63 - 1}),
        replace(JOB, tokenizer_digest="tok", min_policy_version=3, top_p=1.0, top_k=0),
    ],
)
def test_what_can_be_sampled_passes(job):
    check_job(job, INFO, LIMITS, policy_version=3)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (with_prompts(), "prompts is empty"),
        (with_prompts(*({"group_id": str(i)} for i in range(5))), "prompts has 5 entries, the limit is 4; split"),
        (with_prompts({}, {}), r"prompts\[1\]\.group_id is 'g', as is that of prompts\[0\]"),
        (with_prompts({"group_id": ""}), r"prompts\[0\]\.group_id is empty"),
        (with_prompts({"prompt_ids": []}), r"prompts\[0\]\.prompt_ids is empty"),
        (
            with_prompts({"prompt_ids": [1, 100]}),
            r"prompts\[0\]\.prompt_ids\[1\] is 100, outside the vocabulary of 100",
        ),
        (with_prompts({"prompt_ids": [-1]}), r"prompts\[0\]\.prompt_ids\[0\] is -1"),
        (
            with_prompts({"prompt_ids": [1] * 13}),
            r"has 13 tokens, with max_new_tokens 4 that is 17; the",
        ),
        (with_prompts({"seed": -1}), r"prompts\[0\]\.seed is -1"),
        (with_sampling(temperature=0.0, completions_per_prompt=2), r"temperature is 0 .* completions_per_prompt 2"),
        (with_sampling(temperature=10.5), r"sampling\.temperature is 10\.5"),
        (with_sampling(temperature=-1.0), r"sampling\.temperature is -1"),
        (with_sampling(temperature=0.001), r"sampling\.temperature is 0\.001; it must be 0 \(greedy\) or from 0\.01"),
        (with_sampling(temperature=float("nan")), r"sampling\.temperature is nan"),
        (with_sampling(max_new_tokens=0), r"sampling\.max_new_tokens is 0"),
        (with_sampling(completions_per_prompt=257), r"sampling\.completions_per_prompt is 257"),
        (with_sampling(completions_per_prompt=-1), r"sampling\.completions_per_prompt is -1"),
        (with_sampling(completions_per_prompt=11), r"prompts x completions_per_prompt is 11, the limit is 10"),
        (with_sampling(stop_ids=(2, 100)), r"sampling\.stop_ids\[1\] is 100"),
        (replace(JOB, top_p=0.9), r"sampling\.top_p is 0\.9; .* another distribution"),
        (replace(JOB, top_k=50), r"sampling\.top_k is 50; .* another distribution"),
        (replace(JOB, tokenizer_digest="x"), "tokenizer_digest is 'x', this service has 'tok'"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_field_value_and_remedy(job, message):
    with pytest.raises(InvalidRequestError, match=message):
        check_job(job, INFO, LIMITS, policy_version=3)


def test_stale_weights_are_a_precondition_and_the_message_says_to_push():
    with pytest.raises(PreconditionError, match=r"min_policy_version is 4, the policy serves version 3; push"):
        check_job(replace(JOB, min_policy_version=4), INFO, LIMITS, policy_version=3)
