"""The reward service over gRPC and HTTP at once, around any scorer, on free ports."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from prometheus_client import CollectorRegistry

from rlhf.client import Reward, RewardClient, ScoreItem
from rlhf.models.loading import load_tokenizer
from rlhf.serving.http.app import HttpServer
from rlhf.serving.server import ServiceServer
from services.reward.config import LimitsConfig, RewardHttpConfig
from services.reward.core import RewardCore
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import build_scorer, scorer_config
from services.reward.scorers.scorer import Scorer
from services.reward.server import make_http_server
from tests.support.reward_over_grpc import reward_server
from tests.support.tiny_model import ASSISTANT_ID, EOS_ID, USER_ID

QUESTIONS = ("How are you?", "And you?")
ANSWERS = ("Fine, thanks.", "No.")
PROMPTS = [f"<|user|>{question}<|end|><|assistant|>" for question in QUESTIONS]
QUERIES = [f"{prompt}{answer}<|end|>" for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


@dataclass(frozen=True)
class Served:
    """The service, and a client of each kind."""

    server: ServiceServer
    core: RewardCore
    http_server: HttpServer
    registry: CollectorRegistry
    client: RewardClient
    http: aiohttp.ClientSession

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Returns status and JSON. Args: body: bytes as they are, else as JSON; headers: with _ for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.post(path, **content, headers=named) as answer:
            return answer.status, await answer.json(content_type=None)

    async def get(self, path: str) -> tuple[int, Any]:
        """Returns status and JSON."""
        async with self.http.get(path) as answer:
            return answer.status, await answer.json(content_type=None)


@asynccontextmanager
async def served(
    build: Callable[[], Scorer[Any]], *, ready: bool = True, max_body_bytes: int = 1 << 20, **limits: Any
) -> AsyncIterator[Served]:
    """Gives the service. Args: ready: whether to wait until it is."""
    registry = CollectorRegistry()
    core = RewardCore(build, LimitsConfig(**limits), RewardMetrics(registry))
    http_server = make_http_server(core, RewardHttpConfig(port=0, max_body_bytes=max_body_bytes), "127.0.0.1")
    server = reward_server(core, registry, http_server)
    await server.start()
    try:
        if ready:
            await server.wait_ready()
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{http_server.port}", connector=connector) as http,
            RewardClient(f"127.0.0.1:{server.port}", wait_when_overloaded=False) as client,
        ):
            yield Served(server, core, http_server, registry, client, http)
    finally:
        await server.stop()


def tiny_model(path: Path) -> Callable[[], Scorer[Any]]:
    """Returns what loads the tiny reward model."""
    return partial(build_scorer, scorer_config(kind="model", path=str(path), dtype="float32", device="cpu"))


def length_rule() -> Scorer[Any]:
    """Returns the rule that pays 1 - |characters - 200| / 200."""
    return build_scorer(scorer_config(kind="length"))


class Known(NamedTuple):
    """A service with the tiny reward model, and what it is known to give."""

    service: Served
    ids: list[list[int]]
    rewards: list[float]


@asynccontextmanager
async def known(path: Path) -> AsyncIterator[Known]:
    """Gives the service with the tiny reward model, and the rewards of QUESTIONS and ANSWERS over gRPC."""
    tokenizer = load_tokenizer(path)
    ids = [
        [USER_ID, *tokenizer.encode(question), EOS_ID, ASSISTANT_ID, *tokenizer.encode(answer), EOS_ID]
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    async with served(tiny_model(path)) as service:
        results = (await service.client.score([ScoreItem.tokens(each[:5], each[5:]) for each in ids])).results
        rewards = [result.reward for result in results if isinstance(result, Reward)]
        assert len(set(rewards)) == 2
        yield Known(service, ids, rewards)
