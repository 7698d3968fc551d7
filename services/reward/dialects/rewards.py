"""What the wire formats of others share: messages of a conversation, and a reward for every item or one error."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, FailFast, RootModel

from rlhf.client.reward_types import RETRYABLE_CODES
from rlhf.errors import InvalidRequestError, NotReadyError
from rlhf.serving.calls import current_caller
from services.reward.core import RewardCore
from services.reward.scorers.scorer import ChatMessage, Item, Score, ScoreError


class WireMessage(BaseModel):
    """One message. Other fields, such as tool calls, are not read."""

    model_config = ConfigDict(strict=True)

    role: str
    content: str


class WireMessages(RootModel[Annotated[list[WireMessage], FailFast()]]):
    """Messages of a conversation, oldest first."""

    def chat_messages(self) -> tuple[ChatMessage, ...]:
        """Returns them as scorers have them."""
        return tuple(ChatMessage(message.role, message.content) for message in self.root)


class ItemRefusedError(InvalidRequestError):
    """An item has no reward, on a route that can say so only for the whole call. Do not repeat it."""

    http_status: ClassVar[int] = 422

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ItemUnavailableError(NotReadyError):
    """As ItemRefusedError, where repeating the call may help."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def rewards_of(core: RewardCore, items: Sequence[Item], field: str) -> list[Score]:
    """Returns the reward of every item, in order.

    Args: field: what the items are called in the request, for errors.
    Raises: ItemRefusedError or ItemUnavailableError if one has none: for the first error, for one that stays before one
        that may pass; what RewardCore.score raises.
    """
    outcomes = (await core.score(items, caller=current_caller().name)).outcomes
    faults = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, ScoreError)]
    if faults:
        index, fault = min(faults, key=lambda entry: _code_of(entry[1]) in RETRYABLE_CODES)
        error_class = ItemUnavailableError if _code_of(fault) in RETRYABLE_CODES else ItemRefusedError
        more = f" ({len(faults)} of {len(outcomes)} items have no reward)" if len(faults) > 1 else ""
        raise error_class(_code_of(fault), f"{field}[{index}]: {fault.message}{more}")
    return [
        outcome if isinstance(outcome, Score) else Score(outcome)
        for outcome in outcomes
        if not isinstance(outcome, ScoreError)
    ]


def _code_of(fault: ScoreError) -> str:
    return fault.code.name.lower()
