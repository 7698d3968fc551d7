"""From the prompts and completions that frameworks hand over, as text or as messages, to items of a score call."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rlhf.client.reward import RewardError, ScoreItem

Text: TypeAlias = "str | Sequence[Any]"
"""A text, or a list of messages: mappings or objects with `role` and `content`."""


class _UnusableError(Exception):
    """A message that the service cannot be sent; the argument says why."""


def make_item(prompt: Text, completion: Text, *, raw: bool = False) -> ScoreItem | RewardError:
    """Returns what to send for a completion, or the error "invalid_item" if it cannot be sent whole.

    Two texts become a text item; as soon as one of them is a list of messages, both become a conversation, a text
    being what the user or the assistant said.

    Args:
        raw: two texts have been through the chat template; send them as they are.
    """
    try:
        if isinstance(prompt, str) and isinstance(completion, str):
            return ScoreItem.raw(prompt, completion) if raw else ScoreItem.text(prompt, completion)
        messages = [*_messages(prompt, "user"), *_messages(completion, "assistant")]
        return ScoreItem.conversation([_plain(message) for message in messages])
    except _UnusableError as error:
        return RewardError("", "invalid_item", str(error))


def _messages(text: Text, role: str) -> Sequence[Any]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _plain(message: Any) -> dict[str, str]:
    role, content = _field(message, "role"), _field(message, "content")
    if not isinstance(role, str):
        raise _UnusableError(f"a message has the role {role!r}; give each a role and a content")
    if _field(message, "tool_calls"):
        raise _UnusableError(f"a message of the {role} calls tools, which a reward service does not read")
    if content is None:
        return {"role": role, "content": ""}
    if isinstance(content, str):
        return {"role": role, "content": content}
    return {"role": role, "content": "".join(_part_text(part, role) for part in content)}


def _part_text(part: Any, role: str) -> str:
    if _field(part, "type") == "text":
        return str(_field(part, "text"))
    raise _UnusableError(f"a message of the {role} has a part of type {_field(part, 'type')!r}; only text is scored")


def _field(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
