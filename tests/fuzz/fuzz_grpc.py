"""Coverage-guided fuzzing of the gRPC messages: any bytes as a request, each item with an outcome, no fault of ours.

python tests/fuzz/fuzz_grpc.py -max_total_time=60 [FOLDER]: libFuzzer's flags; a folder keeps what was found.
"""

import math
from typing import Any

import atheris
from google.protobuf.message import DecodeError

with atheris.instrument_imports(include=["services.reward", "rlhf.serving"]):
    from rlhf.errors import InvalidRequestError
    from rlhf.v1 import reward_pb2
    from services.reward.scorers.config import build_scorer, scorer_config
    from services.reward.servicer import RewardServicer
    from tests.fuzz.fuzzing import fuzz
    from tests.support.reward_app import RewardApp, reward_app


class Context:
    """What the servicer asks of gRPC's context."""

    def time_remaining(self) -> float | None:
        return None


def test_one_input(app: RewardApp, servicer: RewardServicer, data: bytes) -> None:
    """Reads the bytes behind the first as a request to score, or to compare, and asks for it."""
    compares = bool(data) and data[0] % 2 == 1
    kind = reward_pb2.CompareRequest if compares else reward_pb2.ScoreRequest
    try:
        request: Any = kind.FromString(data[1:])
    except DecodeError:
        return
    method: Any = servicer.Compare if compares else servicer.Score
    try:
        answer = app.run(method(request, Context()))
    except InvalidRequestError:
        return
    assert [result.item_id for result in answer.results] == [item.item_id for item in request.items]
    for result in answer.results:
        outcome = result.WhichOneof("outcome")
        assert outcome is not None, result
        if outcome == "error":
            assert result.error.code, result
            assert result.error.message, result
        else:
            assert math.isfinite(result.comparison.probability if compares else result.reward), result


def seeds() -> list[bytes]:
    """One valid request of each kind, with every form of an item."""
    item = reward_pb2.ScoreItem
    forms = [
        item(item_id="a", text=reward_pb2.TextPair(prompt="p", completion="1")),
        item(tokens=reward_pb2.TokenPair(prompt_ids=[1], completion_ids=[2])),
        item(
            conversation=reward_pb2.Conversation(
                messages=[
                    reward_pb2.ChatMessage(role="user", content="p"),
                    reward_pb2.ChatMessage(role="assistant", content="1"),
                ]
            )
        ),
        item(raw=reward_pb2.RawText(completion="1")),
        item(sequence=reward_pb2.TokenSequence(ids=[1, 2])),
        item(),
    ]
    score = reward_pb2.ScoreRequest(request_id="r", items=forms)
    pair = reward_pb2.ComparisonItem(first=forms[0], second=forms[3], margin=0.5)
    compare = reward_pb2.CompareRequest(items=[pair])
    return [b"\x00" + score.SerializeToString(), b"\x01" + compare.SerializeToString()]


if __name__ == "__main__":
    with reward_app(build_scorer(scorer_config(kind="length")), max_items=64) as app:
        servicer = RewardServicer(app.core)
        fuzz(lambda data: test_one_input(app, servicer, data), seeds())
