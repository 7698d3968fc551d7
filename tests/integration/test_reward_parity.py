"""One service and many ways in: whoever asks, in whatever language and form, gets the same rewards to 1e-5."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rlhf.client import Reward, RewardClient, RewardError, ScoreItem
from rlhf.client.adapters.scoring import close_gatherers
from rlhf.client.adapters.trl import make_async_reward
from rlhf.client.adapters.verl import compute_score
from rlhf.client.sync import SyncRewardClient
from rlhf.models.loading import load_tokenizer
from tests.support.node_example import NodeExample
from tests.support.reward_process import RewardProcess, serving_reward
from tests.support.tiny_model import EOS_ID

BUF = Path(sys.executable).parent / "buf"
PAIRS = [
    ("How are you?", "Fine, thanks."),
    ("How are you?", "Terrible, and it is all because of the rain. " * 4),
    ("Say it in German: the sea", "das Meer"),
    ("What is ½ + ½?", "1 🙂"),
    ("Repeat", "a\n\n  b\t"),
]


@pytest.fixture(scope="module")
def service(tiny_reward_path: Path) -> Iterator[RewardProcess]:
    with serving_reward(tiny_reward_path) as process:
        yield process


@pytest.fixture(scope="module")
def rewards(service: RewardProcess) -> list[float]:
    """What the synchronous client gets for the pairs as text; what all others are compared with."""
    with SyncRewardClient(service.target) as client:
        found = numbers(client.score([ScoreItem.text(*pair) for pair in PAIRS]).results)
    assert len({round(reward, 3) for reward in found}) == len(PAIRS)  # they would show if two were mixed up
    return found


def numbers(results: Sequence[Reward | RewardError]) -> list[float]:
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


def same(rewards: list[float]) -> Any:
    return pytest.approx(rewards, abs=1e-5)


def messages(prompt: str, completion: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def rendered(path: Path, *, with_completion: bool) -> list[str]:
    """Returns each pair as it stands in the model's context, special tokens written out: what these frameworks send."""
    tokenizer = load_tokenizer(path)
    return [
        tokenizer.apply_chat_template(
            messages(*pair)[: 1 + with_completion], tokenize=False, add_generation_prompt=not with_completion
        )
        for pair in PAIRS
    ]


async def post(url: str, body: dict[str, Any]) -> Any:
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_python_in_every_form_of_item_and_size_of_batch(
    service: RewardProcess, rewards: list[float], tiny_reward_path: Path
):
    tokenizer = load_tokenizer(tiny_reward_path)
    prompts = rendered(tiny_reward_path, with_completion=False)
    ids = [
        (tokenizer.encode(prompt), [*tokenizer.encode(pair[1]), EOS_ID])
        for prompt, pair in zip(prompts, PAIRS, strict=True)
    ]
    forms = {
        "text": [ScoreItem.text(*pair) for pair in PAIRS],
        "conversation": [ScoreItem.conversation(messages(*pair)) for pair in PAIRS],
        "raw": [ScoreItem.raw(prompt, f"{pair[1]}<|end|>") for prompt, pair in zip(prompts, PAIRS, strict=True)],
        "tokens": [ScoreItem.tokens(*pair) for pair in ids],
        "sequence": [ScoreItem.sequence(prompt_ids + completion_ids) for prompt_ids, completion_ids in ids],
    }
    async with RewardClient(service.target) as client:
        for form, items in forms.items():
            assert numbers((await client.score(items)).results) == same(rewards), form
            assert numbers((await client.score_many(items, batch_items=1)).results) == same(rewards), form


async def test_a_client_of_openrlhfs_shape(service: RewardProcess, rewards: list[float], tiny_reward_path: Path):
    queries, prompts = (rendered(tiny_reward_path, with_completion=each) for each in (True, False))

    async def ask(query: str, prompt: str) -> float:  # one sample a request, all at the same time
        answer = await post(f"{service.url}/get_reward", {"query": [query], "prompts": [prompt], "labels": [None]})
        assert answer["scores"] == answer["rewards"]
        return float(answer["rewards"][0])

    assert await asyncio.gather(*map(ask, queries, prompts)) == same(rewards)


async def test_a_client_of_vllms_and_verls_shape(service: RewardProcess, rewards: list[float], tiny_reward_path: Path):
    async def ask(text: str) -> float:
        answer = await post(f"{service.url}/classify", {"model": "any", "input": text, "activation": False})
        return float(answer["data"][-1]["probs"][-1])

    queries = rendered(tiny_reward_path, with_completion=True)
    assert await asyncio.gather(*map(ask, queries)) == same(rewards)


async def test_native_json(service: RewardProcess, rewards: list[float]):
    items = [{"text": {"prompt": prompt, "completion": completion}} for prompt, completion in PAIRS]
    answer = await post(f"{service.url}/v1/score", {"items": items})
    assert [result["reward"] for result in answer["results"]] == same(rewards)


def test_buf_curl_by_reflection(service: RewardProcess, rewards: list[float]):
    items = [{"text": {"prompt": prompt, "completion": completion}} for prompt, completion in PAIRS]
    url = f"http://{service.target}/rlhf.v1.RewardService/Score"
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps({"items": items}), url]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert [result["reward"] for result in answer["results"]] == same(rewards)


async def test_node(service: RewardProcess, rewards: list[float], node_example: NodeExample):
    texts = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
    run = await node_example.score([*texts, *({"messages": messages(*pair)} for pair in PAIRS)], service.target)
    assert run.errors == ""
    assert [result["reward"] for result in run.results] == same(rewards * 2)


async def test_the_functions_for_trl_and_verl(service: RewardProcess, rewards: list[float]):
    prompts, completions = zip(*PAIRS, strict=True)
    assert await make_async_reward(service.target)(prompts=prompts, completions=completions) == same(rewards)
    scores = await asyncio.gather(
        *(compute_score("any", said, "", {"question": asked}, target=service.target) for asked, said in PAIRS)
    )
    assert [score["score"] for score in scores] == same(rewards)
    await close_gatherers()
