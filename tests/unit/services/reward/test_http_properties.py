"""Whatever is sent over HTTP, it is answered: never a fault of its own, and never another caller's reward."""

import asyncio
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reward_app import (
    JSON,
    POST_ROUTES,
    VALID_BODIES,
    Answer,
    EchoScorer,
    RewardApp,
    places,
    reward_app,
)

NAMES = sorted({name for _, body in VALID_BODIES for name in body} | {"text", "raw", "ids"})
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["tokens", "rewards", "assistant", "\ud800", "\x00"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "content-type",
                "content-length",
                "content-encoding",
                "x-request-id",
                "x-request-timeout-seconds",
                "x-rlhf-caller",
                "authorization",
            ]
        ),
        st.text(max_size=12) | st.sampled_from(["application/json", "0", "1", "30", "nan", "gzip", "1e-9"]),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def app() -> Iterator[RewardApp]:
    with reward_app(EchoScorer(), max_body_bytes=100_000, max_items=64, max_queue_items=4096) as app:
        yield app


def require_answered(answer: Answer) -> None:
    """Fails unless the answer is a success, or an error of the caller's that says what to mend."""
    assert answer.status < 500 or b"x-request-timeout-seconds" in answer.body, answer
    if answer.status >= 400:
        error = answer.json()["error"]
        assert error["code"]
        assert error["message"]


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from(POST_ROUTES), st.binary(max_size=200), HEADERS)
def test_any_bytes_under_any_headers_are_answered(app: RewardApp, path: str, body: bytes, headers: Any):
    require_answered(app.post(path, body, headers))


@settings(deadline=None)
@given(st.sampled_from(POST_ROUTES), VALUES)
def test_any_json_is_answered(app: RewardApp, path: str, value: Any):
    require_answered(app.post(path, json.dumps(value).encode()))


@settings(deadline=None)
@given(st.data())
def test_a_valid_body_with_any_part_replaced_is_answered(app: RewardApp, data: st.DataObject):
    path, valid = data.draw(st.sampled_from(VALID_BODIES))
    body = {"body": copy.deepcopy(valid)}
    holder, place = data.draw(st.sampled_from(list(places(body))))
    holder[place] = data.draw(VALUES)
    require_answered(app.post(path, json.dumps(body["body"]).encode()))


@pytest.mark.parametrize(("path", "body"), VALID_BODIES)
def test_the_bodies_that_are_changed_are_valid_ones(app: RewardApp, path: str, body: Any):
    # Loading is not set up here.
    assert app.post(path, json.dumps(body).encode()).status == (409 if path == "/v1/load_model" else 200)


def _ask(path: str, numbers: list[int]) -> Any:
    """The body that asks a route for the rewards of completions which spell these numbers."""
    texts = [str(number) for number in numbers]
    match path:
        case "/v1/score":
            return {"items": [{"text": {"prompt": "p", "completion": text}} for text in texts]}
        case "/get_reward":
            return {"query": [f"p{text}" for text in texts], "prompts": ["p"] * len(texts)}
        case "/rm":
            return {"prompt": "p", "response": texts[0]}
        case _:
            return {"input": texts}


def _rewards(path: str, answer: Any) -> list[float]:
    match path:
        case "/v1/score":
            return [result["reward"] for result in answer["results"]]
        case "/get_reward":
            return list(answer["rewards"])
        case "/rm":
            return [answer]
        case "/classify":
            return [each["probs"][-1] for each in answer["data"]]
        case _:
            return [each["embedding"][-1] for each in answer["data"]]


ROUTES = ("/v1/score", "/get_reward", "/rm", "/classify", "/v1/embeddings")
CALLS = st.lists(
    st.tuples(st.sampled_from(ROUTES), st.lists(st.integers(0, 99_999), min_size=1, max_size=5), st.integers(0, 3)),
    min_size=2,
    max_size=12,
)


@settings(deadline=None)
@given(CALLS)
def test_callers_at_the_same_time_get_their_own_rewards_in_their_own_order(app: RewardApp, calls: Any):
    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(
            *(
                app.call("POST", path, json.dumps(_ask(path, numbers)).encode(), [*JSON, ("x-rlhf-caller", f"c{who}")])
                for path, numbers, who in calls
            )
        )

    answers = app.run(all_at_once())
    for (path, numbers, _), answer in zip(calls, answers, strict=True):
        assert answer.status == 200
        asked = numbers[:1] if path == "/rm" else numbers
        assert _rewards(path, answer.json()) == [float(number) for number in asked]
