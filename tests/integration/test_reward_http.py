"""The reward service's own routes over HTTP: real sockets, the same rewards as over gRPC, and what is refused."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.protobuf.json_format import MessageToJson, ParseDict

from rlhf.client import ComparisonItem, Reward, ScoreItem
from rlhf.models.loading import load_tokenizer
from rlhf.v1 import reward_pb2
from tests.support.http_service import length_rule, served, tiny_model
from tests.support.tiny_model import ASSISTANT_ID, EOS_ID, USER_ID

PROMPT, COMPLETION = "How are you?", "Fine, thanks."
RAW_PROMPT = f"<|user|>{PROMPT}<|end|><|assistant|>"


def numbers(*completions: str) -> dict[str, Any]:
    """The body of a call for a NumberScorer."""
    return {"items": [{"text": {"prompt": "p", "completion": completion}} for completion in completions]}


async def test_every_form_of_an_item_gets_the_reward_that_grpc_gives(tiny_reward_path: Path):
    tokenizer = load_tokenizer(tiny_reward_path)
    prompt_ids = [USER_ID, *tokenizer.encode(PROMPT), EOS_ID, ASSISTANT_ID]
    completion_ids = [*tokenizer.encode(COMPLETION), EOS_ID]
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": COMPLETION}]
    items = [
        {"item_id": "text", "text": {"prompt": PROMPT, "completion": COMPLETION}},
        {"item_id": "tokens", "tokens": {"prompt_ids": prompt_ids, "completion_ids": completion_ids}},
        {"item_id": "conversation", "conversation": {"messages": turns}},
        {"item_id": "raw", "raw": {"prompt": RAW_PROMPT, "completion": f"{COMPLETION}<|end|>"}},
        {"item_id": "sequence", "sequence": {"ids": [*prompt_ids, *completion_ids]}},
    ]
    async with served(tiny_model(tiny_reward_path)) as service:
        batch = await service.client.score([ScoreItem.tokens(prompt_ids, completion_ids)])
        status, answer = await service.post("/v1/score", {"items": items})
    (expected,) = batch.results
    assert isinstance(expected, Reward)
    assert status == 200
    assert answer["model_version"] == batch.model_version
    assert [result["item_id"] for result in answer["results"]] == [item["item_id"] for item in items]
    assert [result["reward"] for result in answer["results"]] == pytest.approx([expected.reward] * 5, abs=1e-5)


async def test_an_item_without_a_reward_says_why_and_its_neighbours_keep_theirs():
    async with served(length_rule) as service:
        body = numbers("x" * 150) | {"request_id": "call-1"}
        body["items"] += [{"item_id": "none"}, {"item_id": "empty", "raw": {"completion": ""}}]
        status, answer = await service.post("/v1/score", body)
        repeated = await service.post("/v1/score", body)
    assert status == 200
    # The target is 200: 1 - |150 - 200| / 200.
    assert answer["results"][0] == {"item_id": "", "reward": 0.75, "components": []}
    assert [(each["item_id"], each["error"]["code"]) for each in answer["results"][1:]] == [
        ("none", "SCORE_ERROR_CODE_INVALID_ITEM"),
        ("empty", "SCORE_ERROR_CODE_INVALID_ITEM"),
    ]
    assert "raw.completion is empty" in answer["results"][2]["error"]["message"]
    assert repeated == (200, answer)
    assert service.registry.get_sample_value("rlhf_reward_repeated_calls_total") == 1


async def test_pairs_are_compared_as_over_grpc(tiny_reward_path: Path):
    first, second = {"prompt": "How?", "completion": "So."}, {"prompt": "How?", "completion": "No idea at all."}
    async with served(tiny_model(tiny_reward_path)) as service:
        status, answer = await service.post(
            "/v1/compare", {"items": [{"first": {"text": first}, "second": {"text": second}, "margin": 0.5}, {}]}
        )
        pair = ComparisonItem(ScoreItem.text(**first), ScoreItem.text(**second), margin=0.5)
        (expected,) = (await service.client.compare([pair])).results
    assert status == 200
    result, missing = answer["results"]
    assert missing["error"]["code"] == "SCORE_ERROR_CODE_INVALID_ITEM"
    assert missing["error"]["message"].startswith("first: the item has no input; set one of text, tokens, ")
    for field in ("probability", "first_reward", "second_reward"):
        assert result["comparison"][field] == pytest.approx(getattr(expected, field), abs=1e-5)


async def test_model_and_limits_are_named_and_loading_another_is_refused_where_it_is_not_set_up():
    async with served(length_rule, max_items=7) as service:
        status, model = await service.get("/v1/model")
        assert (status, await service.get("/v1/report")) == (200, (200, {"reports": []}))
        refused, answer = await service.post("/v1/load_model", {"model_paths": ["/models/2"]})
    assert (model["model_name"], model["max_items"], model["logit_scale"]) == ("length", 7, 1.0)
    assert (refused, answer["error"]["code"]) == (409, "failed_precondition")


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b"", 400, "the body is not JSON: EOF"),
        (b'{"items": [\xff]}', 400, "the body is not JSON"),
        (b'{"items": [{"text": {"prompt": "\xff", "completion": "c"}}]}', 400, "invalid unicode"),
        (b'{"items": ' + b"[" * 3000, 400, "recursion limit"),
        (b'{"items": [' + b'{"item_id": "\\ud800"}]}', 400, "the body is not JSON"),
        ({"items": []}, 400, "items is empty; send at least one"),
        ({"items": [{}] * 11}, 400, "items has 11 entries, the limit is 10; split the batch"),
        ({"items": [{}], "more": 1}, 400, "more: no such field"),
        ({"items": [{"text": {"prompt": 7, "completion": "c"}}]}, 400, "items[0].text.prompt is 7: Input should be a"),
        ({"items": [{"raw": {"completion": "a"}, "sequence": {"ids": [1]}}]}, 400, "items[0]: has raw and sequence"),
        ({"items": [{"sequence": {"ids": [1, 2**40]}}]}, 400, "items[0].sequence.ids[1] is 1099511627776: Input"),
        ({"items": [{"sequence": {"ids": ["1"] * 500}}]}, 400, "items[0].sequence.ids[0] is '1': Input should be a"),
        ({"items": {"text": {}}}, 400, "items is {'text': {}}: Input should be a valid array"),
        ({"items": [[]]}, 400, "items[0] is []: Input should be an object"),
        ({"items": None}, 400, "items is None: Input should be a valid array"),
        ({"items": [{}], "tokenizer_digest": "other"}, 400, "tokenizer_digest is 'other'"),
        (b'{"items": "' + b"x" * 5000 + b'"}', 413, "larger than 4096 bytes (http.max_body_bytes)"),
    ],
)
async def test_a_call_that_is_wrong_as_a_whole_is_refused_with_field_value_and_remedy(body, status, part):
    async with served(length_rule, max_items=10, max_body_bytes=4096) as service:
        found, answer = await service.post("/v1/score", body, content_type="application/json")
        assert (found, answer["error"]["code"]) == (status, "invalid_argument" if status == 400 else "body_too_large")
        assert part in answer["error"]["message"]
        assert (await service.post("/v1/score", numbers("x")))[0] == 200


async def test_a_margin_that_is_no_number_is_refused_by_name():
    item = '{"raw": {"completion": "a"}}'
    async with served(length_rule) as service:
        for margin in ("NaN", "Infinity", "1e400"):
            body = f'{{"items": [{{"first": {item}, "second": {item}, "margin": {margin}}}]}}'.encode()
            status, answer = await service.post("/v1/compare", body, content_type="application/json")
            assert status == 400
            assert "items[0].margin is" in answer["error"]["message"]


async def test_a_large_body_is_refused_before_it_is_read():
    async with served(length_rule, max_body_bytes=1024) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_server.port)
        head = "POST /v1/score HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: 100000000000\r\n\r\n{{".encode())
        assert b"413" in await reader.readline()
        writer.close()

        async def endless() -> Any:
            while True:
                yield b" " * 512

        # Without a length the body is read up to the bound; the connection is then closed on the rest.
        try:
            async with service.http.post(
                "/v1/score", data=endless(), headers={"content-type": "application/json"}
            ) as no:
                assert no.status == 413
        except aiohttp.ClientConnectionError:
            pass
        assert (await service.get("/ready"))[0] == 200


async def test_other_kinds_of_bodies_and_unknown_routes_have_answers_of_the_same_shape():
    async with served(length_rule) as service:
        for headers in ({"content_type": "text/plain"}, {"content_type": "application/json; charset=utf-16"}):
            status, answer = await service.post("/v1/score", b"{}", **headers)
            assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")
        status, answer = await service.post("/v1/score", b"{}", content_encoding="gzip")
        assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")
        status, answer = await service.post("/v1/nothing", {})
        assert (status, answer["error"]["code"]) == (404, "not_found")
        status, answer = await service.get("/v1/score")
        assert (status, answer["error"]["code"]) == (405, "method_not_allowed")
        status, document = await service.get("/openapi.json")
    assert status == 200
    operation = document["paths"]["/v1/score"]["post"]
    assert operation["description"].startswith("Gives every item a reward or an error of its own.")
    body = operation["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("/ScoreRequest")
    assert body["example"]["items"]
    schemas = document["components"]["schemas"]
    assert set(schemas["ScoreRequest"]["properties"]) == {"request_id", "items", "tokenizer_digest"}
    assert "SCORE_ERROR_CODE_TOO_LONG" in schemas["ScoreError"]["properties"]["code"]["enum"]
    assert schemas["RewardReport"]["properties"]["item_count"]["type"] == "string"
    assert "/get_reward" in document["paths"]


async def test_what_a_protobuf_library_writes_is_read_and_what_is_answered_it_reads():
    item = reward_pb2.ScoreItem(item_id="a", raw=reward_pb2.RawText(completion="x" * 150))
    request = reward_pb2.CompareRequest(
        request_id="r", items=[reward_pb2.ComparisonItem(item_id="p", first=item, second=item, margin=0.5)]
    )
    async with served(length_rule) as service:
        for snake_case in (False, True):
            body = MessageToJson(request, preserving_proto_field_name=snake_case).encode()
            status, answer = await service.post("/v1/compare", body, content_type="application/json")
            assert status == 200
            (result,) = ParseDict(answer, reward_pb2.CompareResponse()).results
            assert (result.item_id, result.comparison.first_reward) == ("p", 0.75)
        status, answer = await service.get("/v1/model")
    assert ParseDict(answer, reward_pb2.RewardServiceGetModelResponse()).model_name == "length"
