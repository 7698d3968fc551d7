"""The reward service over HTTP without sockets: its ASGI application, called in an event loop of its own."""

import asyncio
import json
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from rlhf.serving.auth import make_authorizer
from rlhf.serving.calls import CallGuard, RpcMetrics
from rlhf.serving.http.app import make_app
from services.reward.config import LimitsConfig, WatchConfig
from services.reward.core import RewardCore
from services.reward.http import DESCRIPTION, TITLE, reward_routes
from services.reward.metrics import RewardMetrics
from services.reward.scorers.scorer import Conversation, Item, ScorerInfo, completion_of
from services.reward.watch.watch import RewardWatch

Headers = Sequence[tuple[str, str]]
JSON = (("content-type", "application/json"),)
POST_ROUTES = (
    "/v1/score",
    "/v1/compare",
    "/v1/load_model",
    "/get_reward",
    "/rm",
    "/rm/text",
    "/classify",
    "/v1/classify",
    "/v1/embeddings",
)
_TEXT = {"prompt": "p", "completion": "1"}
_TURNS = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "1"}]
_FORMS = (
    {"text": _TEXT},
    {"tokens": {"prompt_ids": [1], "completion_ids": [2]}},
    {"conversation": {"messages": _TURNS}},
    {"raw": {"completion": "1"}},
    {"sequence": {"ids": [1, 2]}},
)
VALID_BODIES: tuple[tuple[str, Any], ...] = (
    ("/v1/score", {"request_id": "", "items": [{"item_id": "a", **form} for form in _FORMS], "tokenizer_digest": ""}),
    ("/v1/compare", {"items": [{"item_id": "a", "first": _FORMS[0], "second": _FORMS[3], "margin": 0.5}]}),
    ("/v1/load_model", {"model_paths": ["/models/a"], "component": ""}),
    ("/get_reward", {"query": ["p1", "2"], "prompts": ["p", None], "labels": [None]}),
    ("/rm", {"prompt": _TURNS[:1], "response": "1", "label": None}),
    ("/rm/text", {"prompt": "p", "response": "1"}),
    ("/classify", {"model": "m", "input": ["1", "2"], "activation": False, "add_special_tokens": True}),
    ("/v1/classify", {"messages": _TURNS}),
    ("/v1/embeddings", {"input": "1", "encoding_format": "base64"}),
)


class EchoScorer:
    """Takes completions that spell a number, and gives it as the reward; other ones are worth their length."""

    info = ScorerInfo(name="echo", version="echo-1", tokenizer_digest="t1", max_sequence_tokens=0)

    def prepare(self, item: Item) -> float:
        completion = item.messages[-1].content if isinstance(item, Conversation) else completion_of(item)
        if isinstance(completion, str) and completion.isascii() and completion.isdigit() and len(completion) < 7:
            return float(completion)
        return float(len(completion))

    def size_of(self, prepared: float) -> int:
        return 1

    def score(self, batch: list[float]) -> list[float]:
        return list(batch)

    def close(self) -> None:
        """Holds nothing."""


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RewardApp:
    """The application around a core; its calls are made one by one, or together."""

    def __init__(self, core: RewardCore, loop: asyncio.AbstractEventLoop, max_body_bytes: int) -> None:
        guard = CallGuard("rlhf.v1.RewardService", RpcMetrics(CollectorRegistry()), lambda: None, NOBODY, {})
        self.core = core
        self._loop = loop
        self._app = make_app(TITLE, DESCRIPTION, reward_routes(core), guard, max_body_bytes)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Returns what the work returns."""
        return self._loop.run_until_complete(work)

    def post(self, path: str, body: bytes, headers: Headers = JSON) -> Answer:
        """Returns the answer to one call."""
        answer: Answer = self.run(self.call("POST", path, body, headers))
        return answer

    async def call(self, method: str, path: str, body: bytes, headers: Headers = JSON) -> Answer:
        """Returns the answer to one call, among others."""
        parts: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await asyncio.Event().wait()  # the caller stays
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers],
            "client": ("10.0.0.1", 4711),
            "server": ("10.0.0.2", 80),
        }
        await self._app(scope, receive, send)
        return Answer(sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]))


NOBODY = make_authorizer()


@contextmanager
def reward_app(scorer: Any, *, max_body_bytes: int = 1 << 20, **limits: Any) -> Iterator[RewardApp]:
    """Gives the application around a scorer."""
    loop = asyncio.new_event_loop()
    metrics = RewardMetrics(CollectorRegistry())
    watch = RewardWatch(WatchConfig(), metrics.watch, None)
    core = RewardCore(lambda: scorer, LimitsConfig(**limits), metrics, watch)
    try:
        loop.run_until_complete(core.load())
        yield RewardApp(core, loop, max_body_bytes)
        loop.run_until_complete(core.close())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Gives every part of a JSON value, as what holds it and where in it."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, part in parts:
        yield value, place
        yield from places(part)
