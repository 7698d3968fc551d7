"""The JSON of a proto's messages: read and documented by models made from their descriptors, written by protobuf.

Names are the proto's own (lowerCamelCase is read too), int64 is a string, an enum is its value's name, and what is not
set has its default. Reading is not protobuf's json_format: that takes many times as long, takes a list for a message,
and says less about what is wrong.
"""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, OneofDescriptor
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, FailFast, Field, create_model, model_validator

from rlhf.serving.http.bodies import parse_json

INT32_MAX = 2**31 - 1

_TYPES = {
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_INT32: Annotated[int, Field(ge=-INT32_MAX - 1, le=INT32_MAX)],
    FieldDescriptor.TYPE_INT64: Annotated[str, Field(pattern=r"^-?\d{1,18}$"), AfterValidator(int)],
    FieldDescriptor.TYPE_FLOAT: float,
    FieldDescriptor.TYPE_DOUBLE: float,
}


class MessageModel(BaseModel):
    """Base of the models of messages: exact types, no unknown fields, finite numbers."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        loc_by_alias=False,
    )

    message_class: ClassVar[type[Message]]

    @classmethod
    def decode(cls, body: bytes) -> Message:
        """Returns the message of a body. Raises: InvalidRequestError naming the fields and what is expected."""
        return cls.message_class(**parse_json(cls, body).model_dump(warnings=False))


def add_rpc(
    router: APIRouter,
    method: str,
    path: str,
    rpc: MethodDescriptor,
    answer: Callable[[Any], Awaitable[Message]],
    *,
    summary: str,
    description: str | None = None,
    example: dict[str, Any] | None = None,
) -> None:
    """Adds a route that stands for an rpc.

    Args:
        router: of GuardedRoute.
        method: GET, for an rpc whose request has no fields, or POST.
        path: such as /v1/score.
        rpc: the rpc's descriptor.
        answer: makes the response of the request.
        summary: what it does, in a few words.
        description: what it does, in sentences.
        example: a request, as JSON.
    """
    request_model, answer_model = model_of(rpc.input_type), model_of(rpc.output_type)

    async def with_body(body: Any) -> Message:
        return await answer(body)

    async def without_body() -> Message:
        return await answer(GetMessageClass(rpc.input_type)())

    with_body.__annotations__["body"] = request_model
    endpoint: Callable[..., Any] = with_body if method == "POST" else without_body
    extra = None if example is None else {"requestBody": {"content": {"application/json": {"example": example}}}}
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        name=rpc.name,
        summary=summary,
        description=description,
        response_model=answer_model,
        openapi_extra=extra,
    )


def json_of(message: Message) -> str:
    """Returns a message as JSON; what is not set is there with its default, but for fields that may be absent."""
    return str(
        MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None)
    )


@cache
def model_of(message: Descriptor) -> type[MessageModel]:
    """Returns the model of a message's JSON.

    Raises: TypeError for a field of a type that no message of ours has yet, such as bytes or a map.
    """
    fields: dict[str, Any] = {field.name: _field_of(field) for field in message.fields}
    model = create_model(
        message.name,
        __base__=MessageModel,
        __validators__={oneof.name: _only_one(oneof) for oneof in message.oneofs if len(oneof.fields) > 1},
        **fields,
    )
    model.message_class = GetMessageClass(message)
    return model


def _field_of(field: FieldDescriptor) -> tuple[Any, Any]:
    """Returns the type of a field, and its default."""
    kind: Any = _type_of(field)
    spellings = Field(validation_alias=AliasChoices(field.name, field.json_name))
    if field.is_repeated:
        # FailFast: a million wrong ids make one error, not a million.
        return Annotated[list[kind], FailFast(), spellings], []
    if field.has_presence:
        return Annotated[kind | None, spellings], None
    return Annotated[kind, spellings], field.default_value


def _type_of(field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            raise TypeError(f"{field.full_name} is a map, which has no model yet")
        return model_of(field.message_type)
    if field.enum_type is not None:
        return Literal[tuple(value.name for value in field.enum_type.values)]
    if field.type not in _TYPES:
        raise TypeError(f"{field.full_name} is of a type that has no model yet")
    return _TYPES[field.type]


def _only_one(oneof: OneofDescriptor) -> Any:
    names = [field.name for field in oneof.fields]

    def require_one(model: MessageModel) -> MessageModel:
        given = [name for name in names if getattr(model, name) is not None]
        if len(given) > 1:
            raise ValueError(f"has {' and '.join(given)}; send one of them")
        return model

    return model_validator(mode="after")(require_one)
