"""Digests of what calls say, by which a repeated call is told from another one with the same id."""

from array import array
from collections.abc import Sequence
from typing import Any

from blake3 import blake3

from services.reward.comparing import ComparisonPair
from services.reward.scorers.scorer import ChatMessage, Conversation, Item, RawPair, TextPair, TokenPair, TokenSequence


def digest_of(content: Sequence[Item | ComparisonPair | None]) -> bytes:
    """Returns the digest of the items or pairs: equal for equal ones in the same order, and for no others."""
    hasher = blake3()
    for entry in content:
        _add(hasher, entry)
    return hasher.digest()


def _add(hasher: Any, value: object) -> None:
    """Adds the value's kind, the number of its parts, and the parts, so that no two values read alike."""
    match value:
        case str():
            # A lone surrogate, which JSON can spell, is refused later and by item; here it has to have a digest.
            _add_bytes(hasher, value.encode("utf-8", "surrogatepass"))
        case float():
            _add_bytes(hasher, array("d", [value]).tobytes())
        case TextPair():
            _add_all(hasher, value, [value.prompt, value.completion])
        case RawPair():
            _add_all(hasher, value, [value.prompt, value.completion, float(value.add_special_tokens)])
        case ChatMessage():
            _add_all(hasher, value, [value.role, value.content])
        case Conversation():
            _add_all(hasher, value, value.messages)
        case TokenPair():
            _add_all(hasher, value, [])
            _add_ids(hasher, value.prompt_ids)
            _add_ids(hasher, value.completion_ids)
        case TokenSequence():
            _add_all(hasher, value, [])
            _add_ids(hasher, value.ids)
        case ComparisonPair():
            _add_all(hasher, value, [value.first, value.second, value.margin])
        case None:
            _add_all(hasher, value, [])


def _add_all(hasher: Any, value: object, parts: Sequence[object]) -> None:
    hasher.update(f"{type(value).__name__} {len(parts)};".encode())
    for part in parts:
        _add(hasher, part)


def _add_ids(hasher: Any, ids: Sequence[int]) -> None:
    # As text: JSON's integers have no bounds, and one out of range is refused later and by item.
    _add_bytes(hasher, ",".join(map(str, ids)).encode())


def _add_bytes(hasher: Any, data: bytes) -> None:
    hasher.update(f"{len(data)};".encode())
    hasher.update(data)
