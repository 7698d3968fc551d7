from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_ERROR_CODE_UNSPECIFIED: _ClassVar[ScoreErrorCode]
    SCORE_ERROR_CODE_INVALID_ITEM: _ClassVar[ScoreErrorCode]
    SCORE_ERROR_CODE_TOO_LONG: _ClassVar[ScoreErrorCode]
    SCORE_ERROR_CODE_NOT_FINITE: _ClassVar[ScoreErrorCode]
SCORE_ERROR_CODE_UNSPECIFIED: ScoreErrorCode
SCORE_ERROR_CODE_INVALID_ITEM: ScoreErrorCode
SCORE_ERROR_CODE_TOO_LONG: ScoreErrorCode
SCORE_ERROR_CODE_NOT_FINITE: ScoreErrorCode

class ScoreRequest(_message.Message):
    __slots__ = ("request_id", "items", "tokenizer_digest")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    tokenizer_digest: str
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ..., tokenizer_digest: _Optional[str] = ...) -> None: ...

class ScoreItem(_message.Message):
    __slots__ = ("item_id", "text", "tokens")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    text: TextPair
    tokens: TokenPair
    def __init__(self, item_id: _Optional[str] = ..., text: _Optional[_Union[TextPair, _Mapping]] = ..., tokens: _Optional[_Union[TokenPair, _Mapping]] = ...) -> None: ...

class TextPair(_message.Message):
    __slots__ = ("prompt", "completion")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    completion: str
    def __init__(self, prompt: _Optional[str] = ..., completion: _Optional[str] = ...) -> None: ...

class TokenPair(_message.Message):
    __slots__ = ("prompt_ids", "completion_ids")
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_IDS_FIELD_NUMBER: _ClassVar[int]
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    completion_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, prompt_ids: _Optional[_Iterable[int]] = ..., completion_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("results", "model_version")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ScoreResult]
    model_version: str
    def __init__(self, results: _Optional[_Iterable[_Union[ScoreResult, _Mapping]]] = ..., model_version: _Optional[str] = ...) -> None: ...

class ScoreResult(_message.Message):
    __slots__ = ("item_id", "reward", "error", "spread")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    reward: float
    error: ScoreError
    spread: float
    def __init__(self, item_id: _Optional[str] = ..., reward: _Optional[float] = ..., error: _Optional[_Union[ScoreError, _Mapping]] = ..., spread: _Optional[float] = ...) -> None: ...

class ScoreError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: ScoreErrorCode
    message: str
    def __init__(self, code: _Optional[_Union[ScoreErrorCode, str]] = ..., message: _Optional[str] = ...) -> None: ...

class RewardServiceGetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RewardServiceGetModelResponse(_message.Message):
    __slots__ = ("model_name", "model_version", "tokenizer_digest", "max_sequence_tokens", "max_items")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    tokenizer_digest: str
    max_sequence_tokens: int
    max_items: int
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., max_sequence_tokens: _Optional[int] = ..., max_items: _Optional[int] = ...) -> None: ...
