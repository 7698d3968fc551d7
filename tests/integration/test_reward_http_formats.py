"""The wire formats of OpenRLHF, slime, vLLM, SGLang and verl: what their clients send, and the same rewards."""

import base64
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from rlhf.models.loading import load_tokenizer
from services.reward.scorers.scorer import Item, RawPair
from services.reward.scorers.text import PairTokenizer
from tests.support.http_service import ANSWERS, PROMPTS, QUERIES, QUESTIONS, known, length_rule, served
from tests.support.number_scorer import NumberScorer
from tests.support.tiny_model import PAD_ID

Request = dict[str, Any]


async def test_openrlhf_gets_a_reward_for_each_query_whatever_else_it_sends(tiny_reward_path: Path):
    bodies: list[Request] = [
        {"query": QUERIES, "prompts": PROMPTS, "labels": ["a", None]},
        {"query": QUERIES, "prompts": ["of another text", None]},
        {"query": QUERIES, "prompts": None, "step": 3},
    ]
    async with known(tiny_reward_path) as (service, _, rewards):
        for body in bodies:
            status, answer = await service.post("/get_reward", body)
            assert status == 200
            assert answer["rewards"] == pytest.approx(rewards, abs=1e-5)
            assert answer["scores"] == answer["rewards"]
        assert await service.post("/get_reward", {"query": [], "prompts": [], "labels": []}) == (
            200,
            {"rewards": [], "scores": [], "extra_logs": {}},
        )


async def test_openrlhfs_prompt_is_taken_off_so_that_rules_read_the_completion_alone():
    async with served(length_rule) as service:
        body = {"query": ["ask" + "x" * 150], "prompts": ["ask"]}
        # The target is 200: 1 - |150 - 200| / 200.
        assert (await service.post("/get_reward", body))[1]["rewards"] == [0.75]
        status, answer = await service.post("/get_reward", {"query": ["x", "", "y"], "labels": [1]})
        assert (status, answer["error"]["code"]) == (422, "invalid_item")
        assert answer["error"]["message"].startswith("query[1]: raw.completion is empty")
        status, answer = await service.post("/get_reward", {"query": ["x"], "prompts": ["x", "y"]})
        assert (status, answer["error"]["message"].split(";")[0]) == (400, "prompts has 2 entries and query has 1")


async def test_what_may_pass_is_503_and_what_will_not_is_422():
    class AnyText(NumberScorer):
        def prepare(self, item: Item) -> str:
            assert isinstance(item, RawPair)
            return item.completion

    async with served(AnyText) as service:
        for query, status, code in ((["slow"], 503, "timeout"), (["away"], 503, "unavailable"), (["1"], 200, "")):
            async with service.http.post("/get_reward", json={"query": query}) as answer:
                assert answer.status == status
                assert ("retry-after" in answer.headers) == (status == 503)
                if code:
                    assert (await answer.json())["error"]["code"] == code
        status, answer = await service.post("/get_reward", {"query": ["slow", "1", "none"]})
        assert (status, answer["error"]["code"]) == (422, "scorer_failed")
        assert answer["error"]["message"].startswith("query[2]: ")
        assert answer["error"]["message"].endswith("(2 of 3 items have no reward)")


async def test_slimes_answer_is_the_number_itself(tiny_reward_path: Path):
    turns = [{"role": "user", "content": QUESTIONS[0]}]
    async with known(tiny_reward_path) as (service, _, rewards):
        for path, prompt, completion in (
            ("/rm", turns, ANSWERS[0]),
            ("/rm", PROMPTS[0], f"{ANSWERS[0]}<|end|>"),
            ("/rm/text", QUESTIONS[0], ANSWERS[0]),
        ):
            status, answer = await service.post(path, {"prompt": prompt, "response": completion, "label": "42"})
            assert status == 200
            assert isinstance(answer, float)
            assert answer == pytest.approx(rewards[0], abs=1e-5)
        status, answer = await service.post("/rm", {"prompt": [], "response": "x", "label": None})
        assert (status, answer["error"]["code"]) == (422, "invalid_item")


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
async def test_classes_are_as_vllm_answers_and_verl_reads_them(tiny_reward_path: Path, path: str):
    async with known(tiny_reward_path) as (service, ids, rewards):
        lone = await service.post(path, {"model": "any", "input": QUERIES[0], "activation": False})
        many = await service.post(path, {"input": QUERIES, "use_activation": False, "add_special_tokens": False})
        tokens = await service.post(path, {"input": ids, "truncate_prompt_tokens": None})
        sequence = await service.post(path, {"input": ids[1]})
        name = (await service.get("/v1/model"))[1]["model_name"]
    assert lone[0] == 200
    assert lone[1]["data"][-1]["probs"][-1] == pytest.approx(rewards[0], abs=1e-5)
    for status, answer in (many, tokens):
        assert status == 200
        assert [each["probs"] for each in answer["data"]] == [[pytest.approx(each, abs=1e-5)] for each in rewards]
    assert sequence[1]["data"][0]["probs"][-1] == pytest.approx(rewards[1], abs=1e-5)
    assert many[1]["data"][1] | {"probs": []} == {"index": 1, "label": "LABEL_0", "probs": [], "num_classes": 1}
    assert (many[1]["object"], many[1]["model"]) == ("list", name)
    num_tokens = len(ids[0]) + len(ids[1])
    assert tokens[1]["usage"]["prompt_tokens"] == tokens[1]["usage"]["total_tokens"] == num_tokens


async def test_embeddings_are_as_sglang_answers_and_verl_reads_them(tiny_reward_path: Path):
    async with known(tiny_reward_path) as (service, _, rewards):
        _, plain = await service.post("/v1/embeddings", {"model": "any", "input": QUERIES[1]})
        _, packed = await service.post("/v1/embeddings", {"input": QUERIES, "encoding_format": "base64"})
    assert plain["data"][-1]["embedding"][-1] == pytest.approx(rewards[1], abs=1e-5)
    assert plain["data"][0]["object"] == "embedding"
    numbers = [struct.unpack("<f", base64.b64decode(each["embedding"]))[0] for each in packed["data"]]
    assert numbers == pytest.approx(rewards, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"input": []}, "input: send a text, a list of texts"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [True, False]}, "input"),
        ({"input": [[]]}, "input[0]: the item is a sequence of ids"),
        ({"input": 2**70}, "input"),
        ({}, "send input or messages, one of the two"),
        ({"input": "a", "use_activation": True}, "rewards are not squashed here; send false"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "nothing is cut here"),
        ({"input": "a", "messages": []}, "one of the two"),
    ],
)
async def test_what_a_pooling_route_cannot_do_it_refuses(change: Request, part: str):
    async with served(length_rule) as service:
        status, answer = await service.post("/classify", change)
    assert status in (400, 422)
    assert part in answer["error"]["message"]


def test_the_pooling_routes_add_the_token_of_beginning_that_verl_takes_off(tiny_reward_path: Path, tmp_path: Path):
    shutil.copytree(tiny_reward_path, tmp_path, dirs_exist_ok=True)
    tokenizer = load_tokenizer(tiny_reward_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|pad|> $A", special_tokens=[("<|pad|>", PAD_ID)])
    tokenizer.save_pretrained(tmp_path)
    reader = PairTokenizer(tmp_path)
    plain = reader.encode(RawPair("", "ab"), 100)
    assert reader.encode(RawPair("", "ab", add_special_tokens=True), 100) == [PAD_ID, *plain]
