"""Rollouts, prompts, sampling parameters and weight manifests to and from their protobuf messages."""

from itertools import groupby
from types import MappingProxyType
from typing import cast

from rlhf_services.common.errors import InternalError
from rlhf_services.common.rollout import FinishReason, Prompt, Rollout, Sampling
from rlhf_services.common.weights import TensorInfo, WeightsManifest
from rlhf_services.v1 import policy_pb2, rollout_pb2

_FINISH_REASONS = MappingProxyType({"stop": rollout_pb2.FINISH_REASON_STOP, "length": rollout_pb2.FINISH_REASON_LENGTH})
_FINISH_REASON_NAMES = MappingProxyType({number: name for name, number in _FINISH_REASONS.items()})


def encode_rollout(rollout: Rollout) -> rollout_pb2.Rollout:
    """Returns the message; versions are run-length coded."""
    return rollout_pb2.Rollout(
        rollout_id=rollout.rollout_id,
        group_id=rollout.group_id,
        prompt_ids=rollout.prompt_ids,
        completion_ids=rollout.completion_ids,
        logprobs=rollout.logprobs,
        policy_versions=[
            rollout_pb2.PolicyVersionSpan(policy_version=version, token_count=len(list(run)))
            for version, run in groupby(rollout.policy_versions)
        ],
        finish_reason=_FINISH_REASONS[rollout.finish_reason],
    )


def decode_rollout(message: rollout_pb2.Rollout) -> Rollout:
    """Returns the rollout. Raises InternalError if the sender broke the contract on per-token lengths."""
    versions = [span.policy_version for span in message.policy_versions for _ in range(span.token_count)]
    num_tokens = len(message.completion_ids)
    if not num_tokens or len(message.logprobs) != num_tokens or len(versions) != num_tokens:
        raise InternalError(
            f"rollout {message.rollout_id!r} has {num_tokens} completion_ids, {len(message.logprobs)} logprobs and "
            f"policy_versions for {len(versions)} tokens; the three must be equal and at least 1"
        )
    if message.finish_reason not in _FINISH_REASON_NAMES:
        raise InternalError(
            f"rollout {message.rollout_id!r} has finish_reason {message.finish_reason}; expected 1 or 2"
        )
    return Rollout(
        rollout_id=message.rollout_id,
        group_id=message.group_id,
        prompt_ids=list(message.prompt_ids),
        completion_ids=list(message.completion_ids),
        logprobs=list(message.logprobs),
        policy_versions=versions,
        finish_reason=cast(FinishReason, _FINISH_REASON_NAMES[message.finish_reason]),
    )


def encode_prompt(prompt: Prompt) -> policy_pb2.Prompt:
    """Returns the message."""
    return policy_pb2.Prompt(group_id=prompt.group_id, prompt_ids=prompt.prompt_ids, seed=prompt.seed)


def decode_prompt(message: policy_pb2.Prompt) -> Prompt:
    """Returns the prompt, unchecked."""
    return Prompt(
        group_id=message.group_id,
        prompt_ids=list(message.prompt_ids),
        seed=message.seed if message.HasField("seed") else None,
    )


def encode_sampling(sampling: Sampling) -> policy_pb2.SamplingParams:
    """Returns the message."""
    return policy_pb2.SamplingParams(
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
        completions_per_prompt=sampling.completions_per_prompt,
        stop_ids=sampling.stop_ids,
    )


def decode_sampling(message: policy_pb2.SamplingParams) -> Sampling:
    """Returns the parameters, unchecked, absent ones replaced by their defaults. top_p and top_k are the servicer's."""
    return Sampling(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        max_new_tokens=message.max_new_tokens,
        completions_per_prompt=message.completions_per_prompt or 1,
        stop_ids=tuple(message.stop_ids),
    )


def encode_manifest(manifest: WeightsManifest) -> list[policy_pb2.TensorInfo]:
    """Returns the messages, in the manifest's order."""
    return [
        policy_pb2.TensorInfo(name=info.name, dtype=info.dtype, shape=info.shape, digest=info.digest)
        for info in manifest.tensors
    ]


def decode_manifest(header: policy_pb2.WeightsHeader) -> WeightsManifest:
    """Returns the manifest that a header announces, unchecked."""
    return WeightsManifest(
        tensors=tuple(
            TensorInfo(name=info.name, dtype=info.dtype, shape=tuple(info.shape), digest=info.digest)
            for info in header.tensors
        )
    )
