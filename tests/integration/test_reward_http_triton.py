"""Triton's own client against the reward service, as NeMo-Aligner asks for rewards; and tensors that do not add up."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support.http_service import QUERIES, Served, known, length_rule, served

Request = dict[str, Any]


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
