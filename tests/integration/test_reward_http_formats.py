"""The wire formats of OpenRLHF, slime, vLLM, SGLang, verl and Triton: what their clients send, and the same rewards."""

import asyncio
import base64
import json
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.http as triton
from http_service import Served, length_rule, served, tiny_model
from number_scorer import NumberScorer
from tiny_model import ASSISTANT_ID, EOS_ID, PAD_ID, USER_ID
from tokenizers.processors import TemplateProcessing
from tritonclient.utils import InferenceServerException

from rlhf_services.clients.reward import Reward, ScoreItem
from rlhf_services.models.loading import load_tokenizer
from rlhf_services.reward.scorer import Item, RawPair
from rlhf_services.reward.tokenizing import PairTokenizer

QUESTIONS = ("How are you?", "And you?")
ANSWERS = ("Fine, thanks.", "No.")
PROMPTS = [f"<|user|>{question}<|end|><|assistant|>" for question in QUESTIONS]
QUERIES = [f"{prompt}{answer}<|end|>" for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
Request = dict[str, Any]


class Known(NamedTuple):
    """A service with the tiny reward model, and what it is known to give."""

    service: Served
    ids: list[list[int]]
    rewards: list[float]


@asynccontextmanager
async def known(path: Path) -> AsyncIterator[Known]:
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


def infer(service: Served, inputs: dict[str, np.ndarray], *, binary: bool = True, model: str = "reward_model") -> Any:
    """The rewards as Triton's own client gets them. Blocks."""
    with triton.InferenceServerClient(f"127.0.0.1:{service.gateway.port}") as client:
        tensors = []
        for name, array in inputs.items():
            kind = "BYTES" if array.dtype == object else "INT64"
            tensor = triton.InferInput(name, list(array.shape), kind)
            tensors.append(tensor.set_data_from_numpy(array, binary_data=binary))
        outputs = None if binary else [triton.InferRequestedOutput("rewards", binary_data=False)]
        return client.infer(model, tensors, outputs=outputs, request_id="r-1").as_numpy("rewards")


@pytest.mark.parametrize("binary", [True, False])
async def test_tritons_client_gets_rewards_for_tokens_and_sentences(tiny_reward_path: Path, binary: bool):
    async with known(tiny_reward_path) as (service, ids, rewards):
        tokens = np.full((2, 40), 77, dtype=np.int64)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = each
        lengths = np.array([[len(each)] for each in ids], dtype=np.int64)
        sentences = np.array([[query.encode()] for query in QUERIES], dtype=object)
        of_tokens = await asyncio.to_thread(
            infer, service, {"tokens": tokens, "sequence_lengths": lengths}, binary=binary
        )
        of_sentences = await asyncio.to_thread(infer, service, {"sentences": sentences}, binary=binary)
    for found in (of_tokens, of_sentences):
        assert (found.dtype, found.shape) == (np.float32, (2, 1))
        assert found[:, 0].tolist() == pytest.approx(rewards, abs=1e-5)


async def test_tritons_client_learns_what_is_served_and_what_is_not():
    def ask(service: Served) -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{service.gateway.port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("reward_model")
            assert client.is_model_ready("reward_model", "1")
            assert not client.is_model_ready("critic_infer")
            assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
            assert client.get_model_metadata("reward_model")["outputs"][0]["datatype"] == "FP32"
            assert client.get_model_repository_index()[0]["state"] == "READY"
            config = client.get_model_config("reward_model")
            assert [(each["name"], each["data_type"]) for each in config["input"]] == [
                ("sentences", "TYPE_STRING"),
                ("tokens", "TYPE_INT64"),
                ("sequence_lengths", "TYPE_INT64"),
            ]
        with pytest.raises(InferenceServerException, match="no model 'critic_infer', version '1'; ask for"):
            infer(service, {"sentences": np.array([[b"x"]], dtype=object)}, model="critic_infer")
        with pytest.raises(InferenceServerException, match=r"item\[0\]: the item is a sequence of ids"):
            infer(service, {"tokens": np.ones((1, 2), np.int64), "sequence_lengths": np.full((1, 1), 2)})
        assert infer(service, {"sentences": np.empty((0, 1), dtype=object)}).shape == (0, 1)

    async with served(length_rule) as service:
        await asyncio.to_thread(ask, service)


def tensor(name: str = "sentences", kind: str = "BYTES", shape: Any = (1, 1), **more: Any) -> Request:
    return {"name": name, "datatype": kind, "shape": list(shape), **more}


def binary_of(size: int) -> Request:
    return {"parameters": {"binary_data_size": size}}


@pytest.mark.parametrize(
    ("inputs", "tail", "part"),
    [
        ([tensor(data=["a", "b"])], b"", "has the shape [1, 1] of 1 elements, but 2 are sent"),
        ([tensor(data=["a"], **binary_of(1))], b"a", "needs either data or parameters.binary_data_size"),
        ([tensor()], b"", "needs either data or parameters.binary_data_size"),
        ([tensor(data=[1])], b"", "has data that is no text"),
        ([tensor(kind="FP32", data=[1.0])], b"", "has the datatype 'FP32'; send BYTES or INT64"),
        ([tensor(**binary_of(9))], b"abc", "has binary_data_size 9, but 3 bytes are left in the body"),
        ([tensor(**binary_of(3))], b"abc", "ends within a length, at byte 0"),
        ([tensor(**binary_of(5))], b"\xff\xff\xff\xffa", "has an element of 4294967295 bytes where 1 are left"),
        ([tensor(**binary_of(5))], b"\x01\x00\x00\x00\xff", "number 0, that is not UTF-8"),
        ([tensor(**binary_of(5))], b"\x01\x00\x00\x00ab", "1 bytes of the body belong to no tensor"),
        ([tensor(data=["a"])] * 2, b"", "input 'sentences' is there twice"),
        ([tensor("tokens", "INT64", (1, 2), **binary_of(9))], b"x" * 9, "has 9 bytes, no multiple of 8"),
        ([tensor("tokens", "INT64", (1, 2), data=[[1, 2]])], b"", "input 'sequence_lengths' is missing"),
        ([tensor("tokens", "BYTES", (1, 1), data=["a"])], b"", "input 'tokens' has the wrong datatype; send INT64"),
        ([tensor("tokens", "INT64", (10**9, 0), data=[])], b"", "has 1000000000 rows, the limit is 1024"),
        (
            [tensor("tokens", "INT64", (1, 2), data=[1, 2]), tensor("sequence_lengths", "INT64", (1, 1), data=[3])],
            b"",
            "input 'sequence_lengths' must have 1 numbers from 0 to 2",
        ),
        ([tensor("other", data=["a"])], b"", "input 'other' is not known"),
        ([], b"", "send either sentences, or tokens with sequence_lengths"),
    ],
)
async def test_tensors_that_do_not_add_up_are_refused_by_name(inputs: list[Request], tail: bytes, part: str):
    head = json.dumps({"inputs": inputs}).encode()
    async with served(length_rule) as service:
        status, answer = await service.post(
            "/v2/models/reward_model/infer", head + tail, inference_header_content_length=str(len(head))
        )
    assert status == 400
    assert part in answer["error"]
