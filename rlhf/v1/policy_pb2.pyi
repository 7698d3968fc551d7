from rlhf.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WeightsEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHTS_ENCODING_UNSPECIFIED: _ClassVar[WeightsEncoding]
    WEIGHTS_ENCODING_FULL: _ClassVar[WeightsEncoding]
    WEIGHTS_ENCODING_SPARSE_PATCH: _ClassVar[WeightsEncoding]
WEIGHTS_ENCODING_UNSPECIFIED: WeightsEncoding
WEIGHTS_ENCODING_FULL: WeightsEncoding
WEIGHTS_ENCODING_SPARSE_PATCH: WeightsEncoding

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "prompts", "sampling", "min_policy_version", "tokenizer_digest")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MIN_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    sampling: SamplingParams
    min_policy_version: int
    tokenizer_digest: str
    def __init__(self, request_id: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., min_policy_version: _Optional[int] = ..., tokenizer_digest: _Optional[str] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("group_id", "prompt_ids", "seed")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    def __init__(self, group_id: _Optional[str] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "max_new_tokens", "completions_per_prompt", "stop_ids", "top_p", "top_k")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_PER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    max_new_tokens: int
    completions_per_prompt: int
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    top_p: float
    top_k: int
    def __init__(self, temperature: _Optional[float] = ..., max_new_tokens: _Optional[int] = ..., completions_per_prompt: _Optional[int] = ..., stop_ids: _Optional[_Iterable[int]] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: _rollout_pb2.Rollout
    def __init__(self, rollout: _Optional[_Union[_rollout_pb2.Rollout, _Mapping]] = ...) -> None: ...

class UpdateWeightsRequest(_message.Message):
    __slots__ = ("header", "chunk", "commit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    header: WeightsHeader
    chunk: WeightsChunk
    commit: WeightsCommit
    def __init__(self, header: _Optional[_Union[WeightsHeader, _Mapping]] = ..., chunk: _Optional[_Union[WeightsChunk, _Mapping]] = ..., commit: _Optional[_Union[WeightsCommit, _Mapping]] = ...) -> None: ...

class WeightsHeader(_message.Message):
    __slots__ = ("policy_version", "base_policy_version", "encoding", "tensors", "weights_digest", "base_weights_digest", "relay_targets")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RELAY_TARGETS_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    base_policy_version: int
    encoding: WeightsEncoding
    tensors: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    weights_digest: str
    base_weights_digest: str
    relay_targets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, policy_version: _Optional[int] = ..., base_policy_version: _Optional[int] = ..., encoding: _Optional[_Union[WeightsEncoding, str]] = ..., tensors: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., weights_digest: _Optional[str] = ..., base_weights_digest: _Optional[str] = ..., relay_targets: _Optional[_Iterable[str]] = ...) -> None: ...

class TensorInfo(_message.Message):
    __slots__ = ("name", "dtype", "shape", "digest", "changed_count", "patch_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHANGED_COUNT_FIELD_NUMBER: _ClassVar[int]
    PATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    digest: str
    changed_count: int
    patch_bytes: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., digest: _Optional[str] = ..., changed_count: _Optional[int] = ..., patch_bytes: _Optional[int] = ...) -> None: ...

class WeightsChunk(_message.Message):
    __slots__ = ("offset_bytes", "data")
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset_bytes: int
    data: bytes
    def __init__(self, offset_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WeightsCommit(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UpdateWeightsResponse(_message.Message):
    __slots__ = ("policy_version", "weights_digest", "pause_seconds", "stage_seconds", "relayed")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STAGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    weights_digest: str
    pause_seconds: float
    stage_seconds: float
    relayed: _containers.RepeatedCompositeFieldContainer[RelayedPush]
    def __init__(self, policy_version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., pause_seconds: _Optional[float] = ..., stage_seconds: _Optional[float] = ..., relayed: _Optional[_Iterable[_Union[RelayedPush, _Mapping]]] = ...) -> None: ...

class RelayedPush(_message.Message):
    __slots__ = ("target", "error", "policy_version", "weights_digest", "pause_seconds", "stage_seconds")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STAGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    target: str
    error: str
    policy_version: int
    weights_digest: str
    pause_seconds: float
    stage_seconds: float
    def __init__(self, target: _Optional[str] = ..., error: _Optional[str] = ..., policy_version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., pause_seconds: _Optional[float] = ..., stage_seconds: _Optional[float] = ...) -> None: ...

class PolicyServiceGetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PolicyServiceGetModelResponse(_message.Message):
    __slots__ = ("model_name", "tokenizer_digest", "policy_version", "weights_digest", "engine", "dtype", "max_sequence_tokens", "vocab_size", "stop_ids", "max_prompts", "max_chunk_bytes", "encodings", "max_sequences")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    tokenizer_digest: str
    policy_version: int
    weights_digest: str
    engine: str
    dtype: str
    max_sequence_tokens: int
    vocab_size: int
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    max_prompts: int
    max_chunk_bytes: int
    encodings: _containers.RepeatedScalarFieldContainer[WeightsEncoding]
    max_sequences: int
    def __init__(self, model_name: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., policy_version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., engine: _Optional[str] = ..., dtype: _Optional[str] = ..., max_sequence_tokens: _Optional[int] = ..., vocab_size: _Optional[int] = ..., stop_ids: _Optional[_Iterable[int]] = ..., max_prompts: _Optional[int] = ..., max_chunk_bytes: _Optional[int] = ..., encodings: _Optional[_Iterable[_Union[WeightsEncoding, str]]] = ..., max_sequences: _Optional[int] = ...) -> None: ...
