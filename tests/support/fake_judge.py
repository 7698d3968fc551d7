"""A judge behind an HTTP server that speaks the chat completions protocol; its probabilities come from the texts."""

import asyncio
import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse

KEY = "sk-secret-1234"
FIRST_PLACE = 0.4
"""What the judge adds to the logit of the answer in the first place: the bias that asking in both orders takes out."""


class FakeJudge:
    """Answers Yes with a logit of the number in the completion; of two answers it prefers the greater number."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times_busy = 0
        self.num_now = self.most_at_once = 0
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.complete)

    async def complete(self, request: Request) -> Any:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("authorization"))
        text = body["messages"][0]["content"]
        self.num_now += 1
        self.most_at_once = max(self.most_at_once, self.num_now)
        try:
            await asyncio.sleep(0.01)
            return await self._answer(text)
        finally:
            self.num_now -= 1

    async def _answer(self, text: str) -> Any:
        if "hang" in text:
            await asyncio.sleep(30)
        if "busy" in text or self.times_busy > 0:
            self.times_busy -= 1
            return JSONResponse({"error": {"message": "too much to do"}}, 429, {"retry-after-ms": "1"})
        if "refuse" in text:
            return JSONResponse({"error": {"message": "maximum context length is 8 tokens"}}, 400)
        if "forbid" in text:
            return JSONResponse({"error": {"message": f"wrong key: {KEY}"}}, 401)
        if "garbage" in text:
            return PlainTextResponse("<html>")
        if "wordless" in text:
            return {"choices": [{"message": {"role": "assistant", "content": "Yes"}, "logprobs": None}]}
        if "chatty" in text:
            return completion({"Well": 0.9, "Yes": 0.01})
        return completion(probabilities(text))


def probabilities(text: str) -> dict[str, float]:
    """What the judge thinks of a question, by token."""
    numbers = [float(part.split("\n")[1]) for part in text.split("answer") if part.split("\n")[0].endswith("begins")]
    if len(numbers) == 1:
        yes = 0.9 / (1 + math.exp(-numbers[0]))
        return {"Yes": yes * 0.75, " yes": yes * 0.25, "No": 0.9 - yes, "Well": 0.1}
    first = 1 / (1 + math.exp(numbers[1] - numbers[0] - FIRST_PLACE))
    return {"A": first, "B": 1 - first}


def completion(found: dict[str, float]) -> dict[str, Any]:
    listed = [{"token": token, "logprob": math.log(value), "bytes": None} for token, value in found.items()]
    content = [{**listed[0], "top_logprobs": listed}]
    choice = {"index": 0, "message": {"role": "assistant", "content": listed[0]["token"]}, "finish_reason": "length"}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{**choice, "logprobs": {"content": content}}],
    }


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Yields the URL of a server of its own thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
