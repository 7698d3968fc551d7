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
    SCORE_ERROR_CODE_SCORER_FAILED: _ClassVar[ScoreErrorCode]
    SCORE_ERROR_CODE_TIMEOUT: _ClassVar[ScoreErrorCode]
    SCORE_ERROR_CODE_UNAVAILABLE: _ClassVar[ScoreErrorCode]
SCORE_ERROR_CODE_UNSPECIFIED: ScoreErrorCode
SCORE_ERROR_CODE_INVALID_ITEM: ScoreErrorCode
SCORE_ERROR_CODE_TOO_LONG: ScoreErrorCode
SCORE_ERROR_CODE_NOT_FINITE: ScoreErrorCode
SCORE_ERROR_CODE_SCORER_FAILED: ScoreErrorCode
SCORE_ERROR_CODE_TIMEOUT: ScoreErrorCode
SCORE_ERROR_CODE_UNAVAILABLE: ScoreErrorCode

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
    __slots__ = ("item_id", "text", "tokens", "conversation", "raw", "sequence")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    text: TextPair
    tokens: TokenPair
    conversation: Conversation
    raw: RawText
    sequence: TokenSequence
    def __init__(self, item_id: _Optional[str] = ..., text: _Optional[_Union[TextPair, _Mapping]] = ..., tokens: _Optional[_Union[TokenPair, _Mapping]] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ..., raw: _Optional[_Union[RawText, _Mapping]] = ..., sequence: _Optional[_Union[TokenSequence, _Mapping]] = ...) -> None: ...

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

class Conversation(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class RawText(_message.Message):
    __slots__ = ("prompt", "completion")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    completion: str
    def __init__(self, prompt: _Optional[str] = ..., completion: _Optional[str] = ...) -> None: ...

class TokenSequence(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("results", "model_version")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ScoreResult]
    model_version: str
    def __init__(self, results: _Optional[_Iterable[_Union[ScoreResult, _Mapping]]] = ..., model_version: _Optional[str] = ...) -> None: ...

class ScoreResult(_message.Message):
    __slots__ = ("item_id", "reward", "error", "spread", "components")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    reward: float
    error: ScoreError
    spread: float
    components: _containers.RepeatedCompositeFieldContainer[ComponentReward]
    def __init__(self, item_id: _Optional[str] = ..., reward: _Optional[float] = ..., error: _Optional[_Union[ScoreError, _Mapping]] = ..., spread: _Optional[float] = ..., components: _Optional[_Iterable[_Union[ComponentReward, _Mapping]]] = ...) -> None: ...

class ComponentReward(_message.Message):
    __slots__ = ("name", "weight", "reward", "spread")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    reward: float
    spread: float
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ..., reward: _Optional[float] = ..., spread: _Optional[float] = ...) -> None: ...

class ScoreError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: ScoreErrorCode
    message: str
    def __init__(self, code: _Optional[_Union[ScoreErrorCode, str]] = ..., message: _Optional[str] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("request_id", "items", "tokenizer_digest")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[ComparisonItem]
    tokenizer_digest: str
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ComparisonItem, _Mapping]]] = ..., tokenizer_digest: _Optional[str] = ...) -> None: ...

class ComparisonItem(_message.Message):
    __slots__ = ("item_id", "first", "second", "margin")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    first: ScoreItem
    second: ScoreItem
    margin: float
    def __init__(self, item_id: _Optional[str] = ..., first: _Optional[_Union[ScoreItem, _Mapping]] = ..., second: _Optional[_Union[ScoreItem, _Mapping]] = ..., margin: _Optional[float] = ...) -> None: ...

class CompareResponse(_message.Message):
    __slots__ = ("results", "model_version")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ComparisonResult]
    model_version: str
    def __init__(self, results: _Optional[_Iterable[_Union[ComparisonResult, _Mapping]]] = ..., model_version: _Optional[str] = ...) -> None: ...

class ComparisonResult(_message.Message):
    __slots__ = ("item_id", "comparison", "error")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    comparison: Comparison
    error: ScoreError
    def __init__(self, item_id: _Optional[str] = ..., comparison: _Optional[_Union[Comparison, _Mapping]] = ..., error: _Optional[_Union[ScoreError, _Mapping]] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("probability", "first_reward", "second_reward")
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    FIRST_REWARD_FIELD_NUMBER: _ClassVar[int]
    SECOND_REWARD_FIELD_NUMBER: _ClassVar[int]
    probability: float
    first_reward: float
    second_reward: float
    def __init__(self, probability: _Optional[float] = ..., first_reward: _Optional[float] = ..., second_reward: _Optional[float] = ...) -> None: ...

class RewardServiceGetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RewardServiceGetModelResponse(_message.Message):
    __slots__ = ("model_name", "model_version", "tokenizer_digest", "max_sequence_tokens", "max_items", "max_text_characters", "logit_scale")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_SCALE_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    tokenizer_digest: str
    max_sequence_tokens: int
    max_items: int
    max_text_characters: int
    logit_scale: float
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., max_sequence_tokens: _Optional[int] = ..., max_items: _Optional[int] = ..., max_text_characters: _Optional[int] = ..., logit_scale: _Optional[float] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("request_id", "model_paths", "component")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATHS_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model_paths: _containers.RepeatedScalarFieldContainer[str]
    component: str
    def __init__(self, request_id: _Optional[str] = ..., model_paths: _Optional[_Iterable[str]] = ..., component: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model_version", "previous_model_version", "load_seconds")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    previous_model_version: str
    load_seconds: float
    def __init__(self, model_version: _Optional[str] = ..., previous_model_version: _Optional[str] = ..., load_seconds: _Optional[float] = ...) -> None: ...

class GetReportRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetReportResponse(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[RewardReport]
    def __init__(self, reports: _Optional[_Iterable[_Union[RewardReport, _Mapping]]] = ...) -> None: ...

class RewardReport(_message.Message):
    __slots__ = ("model_version", "caller", "item_count", "window_item_count", "baseline_item_count", "baseline_mean", "reward_mean", "reward_std", "reward_quantiles", "drift", "length_correlation", "repetition_mean", "spread_mean", "heldout_gap", "heldout_correlation", "warnings")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    BASELINE_ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    BASELINE_MEAN_FIELD_NUMBER: _ClassVar[int]
    REWARD_MEAN_FIELD_NUMBER: _ClassVar[int]
    REWARD_STD_FIELD_NUMBER: _ClassVar[int]
    REWARD_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    REPETITION_MEAN_FIELD_NUMBER: _ClassVar[int]
    SPREAD_MEAN_FIELD_NUMBER: _ClassVar[int]
    HELDOUT_GAP_FIELD_NUMBER: _ClassVar[int]
    HELDOUT_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    caller: str
    item_count: int
    window_item_count: int
    baseline_item_count: int
    baseline_mean: float
    reward_mean: float
    reward_std: float
    reward_quantiles: _containers.RepeatedScalarFieldContainer[float]
    drift: float
    length_correlation: float
    repetition_mean: float
    spread_mean: float
    heldout_gap: float
    heldout_correlation: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model_version: _Optional[str] = ..., caller: _Optional[str] = ..., item_count: _Optional[int] = ..., window_item_count: _Optional[int] = ..., baseline_item_count: _Optional[int] = ..., baseline_mean: _Optional[float] = ..., reward_mean: _Optional[float] = ..., reward_std: _Optional[float] = ..., reward_quantiles: _Optional[_Iterable[float]] = ..., drift: _Optional[float] = ..., length_correlation: _Optional[float] = ..., repetition_mean: _Optional[float] = ..., spread_mean: _Optional[float] = ..., heldout_gap: _Optional[float] = ..., heldout_correlation: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
