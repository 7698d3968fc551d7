"""Coverage-guided fuzzing of the HTTP routes without sockets: any bytes to any route, no fault of ours.

python tests/fuzz/fuzz_json.py -max_total_time=60 [FOLDER]: libFuzzer's flags; a folder keeps what was found.
"""

import copy
import json
import math
import random

import atheris

with atheris.instrument_imports(include=["services.reward", "rlhf.serving"]):
    from services.reward.scorers.config import build_scorer, scorer_config
    from tests.fuzz.fuzzing import fuzz
    from tests.support.reward_app import JSON, POST_ROUTES, VALID_BODIES, RewardApp, places, reward_app

VALUES = (None, True, 0, -1, 2**31, 2**64, 1e308, math.nan, math.inf, "", "\ud800", "1" * 300, [], {}, [[]])


def test_one_input(app: RewardApp, data: bytes) -> None:
    """Sends the bytes behind the first to the route that the first names."""
    if not data:
        return
    path = POST_ROUTES[data[0] % len(POST_ROUTES)]
    answer = app.post(path, data[1:], JSON)
    assert answer.status < 500, (path, answer)
    content = json.loads(answer.body, parse_constant=_refuse)
    if answer.status >= 400:
        assert content["error"], answer
    elif path == "/v1/score":
        for result in content["results"]:
            assert ("error" in result) != math.isfinite(result.get("reward", math.nan)), result


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in an answer")


def seeds() -> list[bytes]:
    """One valid body for each route."""
    return [bytes([POST_ROUTES.index(path)]) + json.dumps(body).encode() for path, body in VALID_BODIES]


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Returns a change of an input: of its bytes, or, where it is JSON, of one of its values."""
    chance = random.Random(seed)
    if chance.random() < 0.3:
        return atheris.Mutate(data, max_size)
    try:
        body = {"body": json.loads(data[1:])}
    except ValueError:
        return atheris.Mutate(data, max_size)
    holder, place = chance.choice(list(places(body)))
    match chance.randrange(4):
        case 0:
            holder[place] = chance.choice(VALUES)
        case 1:
            # A part of another body, of this route's or another's.
            parts = list(places({"body": copy.deepcopy(chance.choice(VALID_BODIES)[1])}))
            other, where = chance.choice(parts)
            holder[place] = other[where]
        case 2:
            holder[place] = [holder[place]] * chance.randrange(4)
        case _ if isinstance(holder[place], str):
            text = atheris.Mutate(holder[place].encode("utf-8", "surrogatepass"), 64)
            holder[place] = text.decode("utf-8", "replace")
    return (data[:1] + json.dumps(body["body"]).encode())[:max_size]


if __name__ == "__main__":
    with reward_app(build_scorer(scorer_config(kind="length")), max_body_bytes=100_000, max_items=64) as app:
        fuzz(lambda data: test_one_input(app, data), seeds(), mutated)
