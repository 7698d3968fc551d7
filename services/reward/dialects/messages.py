"""Messages of a conversation, as the wire formats of others have them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, RootModel

from services.reward.scorers.scorer import ChatMessage


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
