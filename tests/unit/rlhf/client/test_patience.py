import pytest

from rlhf.client import RewardClient
from rlhf.client import patience as waiting
from rlhf.client.base import ServiceClient
from rlhf.client.patience import Patience
from rlhf.errors import InvalidRequestError, NotReadyError, OverloadedError


class FakeClient(RewardClient):
    """Says SERVING from the given question on."""

    def __init__(self, serving_from: int) -> None:
        super().__init__("nowhere:1")
        self.questions = 0
        self.serving_from = serving_from

    async def is_serving(self, deadline_seconds: float = 5.0) -> bool:
        self.questions += 1
        return self.questions >= self.serving_from


@pytest.fixture(autouse=True)
def _fast_polls(monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.01)


@pytest.mark.parametrize("error_class", [NotReadyError, OverloadedError])
async def test_it_waits_for_health_then_calls_again_and_reports_once(error_class):
    outcomes = [error_class("reward service at nowhere:1: away"), error_class("still away"), "rewards"]
    messages: list[str] = []
    answered: list[ServiceClient] = []

    async def call():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    client = FakeClient(serving_from=3)
    patience = Patience(wait_seconds=60, on_wait=lambda _, message: messages.append(message), on_answer=answered.append)
    assert await patience.ask(client, call) == "rewards"
    assert answered == [client]
    assert messages == ["reward service at nowhere:1: away; waiting up to 60 s for it"]
    assert client.questions == 4  # twice not serving, serving; the second failure asks once more


async def test_it_gives_up_after_the_wait_with_the_remedy():
    async def call():
        raise NotReadyError("reward service at nowhere:1: away")

    with pytest.raises(NotReadyError, match=r"reward service at nowhere:1: away; .*--resume"):
        await Patience(wait_seconds=0.05, remedy="go on with --resume").ask(FakeClient(serving_from=10**9), call)


async def test_a_wrong_request_is_not_repeated():
    calls = 0

    async def call():
        nonlocal calls
        calls += 1
        raise InvalidRequestError("items is empty")

    with pytest.raises(InvalidRequestError):
        await Patience(wait_seconds=60).ask(FakeClient(serving_from=1), call)
    assert calls == 1
