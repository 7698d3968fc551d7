"""Rollouts, prompts, sampling parameters, weight pushes, and what services say of themselves, to and from protobuf."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from itertools import groupby
from types import MappingProxyType
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from rlhf.errors import InternalError
from rlhf.rollout import FinishReason, Prompt, Rollout, Sampling
from rlhf.v1 import policy_pb2, rollout_pb2
from rlhf.weights import Encoding, PatchPart, PushHeader, PushResult, RelayedPush, TensorInfo, WeightsManifest

_FINISH_REASONS = MappingProxyType({"stop": rollout_pb2.FINISH_REASON_STOP, "length": rollout_pb2.FINISH_REASON_LENGTH})
_FINISH_REASON_NAMES = MappingProxyType({number: name for name, number in _FINISH_REASONS.items()})
_ENCODINGS: Mapping[Encoding, policy_pb2.WeightsEncoding] = MappingProxyType(
    {
        "unspecified": policy_pb2.WEIGHTS_ENCODING_UNSPECIFIED,
        "full": policy_pb2.WEIGHTS_ENCODING_FULL,
        "sparse_patch": policy_pb2.WEIGHTS_ENCODING_SPARSE_PATCH,
    }
)
_ENCODING_NAMES: Mapping[int, Encoding] = MappingProxyType({number: name for name, number in _ENCODINGS.items()})

T = TypeVar("T")


def from_message(cls: type[T], message: Message, **others: Any) -> T:
    """Returns a dataclass with the values of a message's fields: a tuple for a repeated one, None for an absent one.

    Args:
        cls: the dataclass; its fields have the names of the message's.
        others: values of the fields that the message has in another form, or not at all.
    """
    names = [field.name for field in fields(cls) if field.name not in others]  # type: ignore[arg-type]
    return cls(**{name: _plain(message, name) for name in names}, **others)


def _plain(message: Message, name: str) -> Any:
    field, value = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
    if field.is_repeated:
        return tuple(value)
    return None if field.has_presence and not message.HasField(name) else value


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


def encode_header(header: PushHeader) -> policy_pb2.WeightsHeader:
    """Returns the message."""
    parts = header.parts or (PatchPart(0, 0),) * len(header.manifest.tensors)
    return policy_pb2.WeightsHeader(
        policy_version=header.policy_version,
        base_policy_version=header.base_policy_version,
        base_weights_digest=header.base_weights_digest,
        encoding=_ENCODINGS[header.encoding],
        tensors=[
            policy_pb2.TensorInfo(
                name=info.name,
                dtype=info.dtype,
                shape=info.shape,
                digest=info.digest,
                changed_count=part.changed_count,
                patch_bytes=part.num_bytes,
            )
            for info, part in zip(header.manifest.tensors, parts, strict=True)
        ],
        weights_digest=header.weights_digest,
        relay_targets=header.relay_targets,
    )


def decode_header(message: policy_pb2.WeightsHeader) -> PushHeader:
    """Returns what a header announces, unchecked."""
    return PushHeader(
        policy_version=message.policy_version,
        manifest=WeightsManifest(
            tuple(TensorInfo(info.name, info.dtype, tuple(info.shape), info.digest) for info in message.tensors)
        ),
        weights_digest=message.weights_digest,
        encoding=_ENCODING_NAMES.get(message.encoding, "unspecified"),
        base_policy_version=message.base_policy_version,
        base_weights_digest=message.base_weights_digest,
        parts=tuple(PatchPart(info.changed_count, info.patch_bytes) for info in message.tensors),
        relay_targets=tuple(message.relay_targets),
    )


def encode_push_result(result: PushResult) -> policy_pb2.UpdateWeightsResponse:
    """Returns the message."""
    return policy_pb2.UpdateWeightsResponse(
        policy_version=result.policy_version,
        weights_digest=result.weights_digest,
        pause_seconds=result.pause_seconds,
        stage_seconds=result.stage_seconds,
        relayed=[policy_pb2.RelayedPush(**asdict(each)) for each in result.relayed],
    )


def decode_push_result(message: policy_pb2.UpdateWeightsResponse) -> PushResult:
    """Returns the result."""
    relayed = tuple(from_message(RelayedPush, each) for each in message.relayed)
    return from_message(PushResult, message, relayed=relayed)
