from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ComputeLogprobsRequest(_message.Message):
    __slots__ = ("request_id", "items", "temperature", "tokenizer_digest")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[ComputeLogprobsItem]
    temperature: float
    tokenizer_digest: str
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ComputeLogprobsItem, _Mapping]]] = ..., temperature: _Optional[float] = ..., tokenizer_digest: _Optional[str] = ...) -> None: ...

class ComputeLogprobsItem(_message.Message):
    __slots__ = ("item_id", "prompt_ids", "completion_ids")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_IDS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    completion_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, item_id: _Optional[str] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., completion_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ComputeLogprobsResponse(_message.Message):
    __slots__ = ("results", "reference_version")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ComputeLogprobsResult]
    reference_version: str
    def __init__(self, results: _Optional[_Iterable[_Union[ComputeLogprobsResult, _Mapping]]] = ..., reference_version: _Optional[str] = ...) -> None: ...

class ComputeLogprobsResult(_message.Message):
    __slots__ = ("item_id", "logprobs")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, item_id: _Optional[str] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class ReferenceServiceGetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReferenceServiceGetModelResponse(_message.Message):
    __slots__ = ("model_name", "reference_version", "tokenizer_digest", "max_sequence_tokens", "max_items")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    reference_version: str
    tokenizer_digest: str
    max_sequence_tokens: int
    max_items: int
    def __init__(self, model_name: _Optional[str] = ..., reference_version: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., max_sequence_tokens: _Optional[int] = ..., max_items: _Optional[int] = ...) -> None: ...
