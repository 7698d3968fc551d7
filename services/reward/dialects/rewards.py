"""What the wire formats of others share: messages of a conversation, and a reward for every item or one error."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, FailFast, RootModel

from rlhf.errors import InvalidRequestError, NotReadyError
from rlhf.serving.calls import current_caller
from services.reward.core import RewardCore
from services.reward.scorers.scorer import ChatMessage, ErrorCode, Item, Outcome, Score, ScoreError


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


RETRYABLE = frozenset({ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE})


async def rewards_of(core: RewardCore, items: Sequence[Item], field: str) -> list[Score]:
    """Returns the reward of every item, in order.

    Args: field: what the items are called in the request, for errors.
    Raises: ItemRefusedError or ItemUnavailableError if one has none; what RewardCore.score raises.
    """
    answer = await core.score(items, caller=current_caller().name)
    return require_rewards(answer.outcomes, field)


def require_rewards(outcomes: Sequence[Outcome], field: str) -> list[Score]:
    """Returns the outcomes as scores. Raises for the first error, for one that stays before one that may pass."""
    faults = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, ScoreError)]
    if faults:
        index, fault = min(faults, key=lambda entry: entry[1].code in RETRYABLE)
        error_class = ItemUnavailableError if fault.code in RETRYABLE else ItemRefusedError
        more = f" ({len(faults)} of {len(outcomes)} items have no reward)" if len(faults) > 1 else ""
        raise error_class(fault.code.name.lower(), f"{field}[{index}]: {fault.message}{more}")
    return [_score_of(outcome) for outcome in outcomes if not isinstance(outcome, ScoreError)]


def _score_of(outcome: float | Score) -> Score:
    return outcome if isinstance(outcome, Score) else Score(outcome)
