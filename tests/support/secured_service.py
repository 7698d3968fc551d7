"""The reward service with a rule for a scorer, over gRPC and HTTP at once, as the environment secures it."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from rlhf.serving.server import ServiceServer
from services.reward.config import LimitsConfig, RewardHttpConfig
from services.reward.core import RewardCore
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import build_scorer, scorer_config
from services.reward.server import make_http_server
from tests.support.reward_over_grpc import reward_server

BODY = {"items": [{"text": {"prompt": "a prompt", "completion": "a completion"}}]}


@dataclass(frozen=True)
class Secured:
    """Where the service is."""

    target: str
    http: str
    """Host and port, as the target has them."""
    server: ServiceServer


async def post(http: str, path: str, body: Any = None, *, token: str | None = None, tls: Any = None) -> tuple[int, Any]:
    """Returns status and JSON of a call over a connection of its own.

    Args:
        http: host and port.
        path: such as "/v1/score".
        body: what is sent; None gets instead.
        token: shown to the service.
        tls: the client's SSL context; None: plain HTTP.
    """
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    url = f"{'http' if tls is None else 'https'}://{http}{path}"
    async with aiohttp.ClientSession(headers=headers) as session:
        request = session.get if body is None else partial(session.post, json=body)
        async with request(url, ssl=True if tls is None else tls) as answer:
            return answer.status, await answer.json()


@asynccontextmanager
async def secured_service(**server: Any) -> AsyncIterator[Secured]:
    """Gives the service, ready. Args: server: fields of RewardServerConfig."""
    registry = CollectorRegistry()
    core = RewardCore(partial(build_scorer, scorer_config(kind="length")), LimitsConfig(), RewardMetrics(registry))
    http_server = make_http_server(core, RewardHttpConfig(port=0), "127.0.0.1")
    service = reward_server(core, registry, http_server, **server)
    await service.start()
    try:
        await service.wait_ready()
        yield Secured(f"localhost:{service.port}", f"localhost:{http_server.port}", service)
    finally:
        await service.stop()


def entry(name: str, scopes: list[str], *, token: str = "", certificate: str = "") -> str:
    """Returns one client, as the service's list of clients has it."""
    shown = f'certificate = "{certificate}"'
    if token:
        shown = f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"'
    return f'[[clients]]\nname = "{name}"\nscopes = {scopes}\n{shown}\n'.replace("'", '"')


def replace(path: Path, text: str) -> None:
    """Writes a file in one step, as what renews secrets does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)
