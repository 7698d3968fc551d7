"""Checks of token ids that callers send, shared by the services that take them."""

from collections.abc import Sequence


def fault_of_ids(field: str, ids: Sequence[int], vocab_size: int) -> str | None:
    """Says what is wrong with a list of token ids and the remedy; None if it has some and all are known."""
    if not ids:
        return f"{field} is empty; send at least one token id"
    if min(ids) < 0 or max(ids) >= vocab_size:
        index = next(index for index, token in enumerate(ids) if not 0 <= token < vocab_size)
        return (
            f"{field}[{index}] is {ids[index]}, outside the vocabulary of {vocab_size}; "
            f"send ids from 0 to {vocab_size - 1} made by this service's tokenizer"
        )
    return None


def fault_of_digest(given: str, served: str) -> str | None:
    """Says that a request's tokenizer is not the one served, or returns None. An empty digest is not checked."""
    if not given or given == served:
        return None
    served_text = f"'{served}'" if served else "none (no tokenizer is configured)"
    return (
        f"tokenizer_digest is '{given}', this service has {served_text}; "
        "make the ids with the served model's tokenizer, or point the service at a model that shares yours"
    )
