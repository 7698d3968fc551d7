"""The judge behind a real policy service with the tiny random model, against the model's own probabilities."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from rlhf.client.policy import PolicyClient
from rlhf.errors import ConfigError
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.models.weights import checkpoint_manifest, checkpoint_tensors, model_manifest, tensor_bytes
from rlhf.weights import PushHeader
from services.reward.scorers.judge.config import JudgeConfig
from services.reward.scorers.judge.policy import PolicyBackend
from services.reward.scorers.judge.questions import FirstTokens, Question, probability_of_first
from services.reward.scorers.judge.scorer import build_judge_scorer
from services.reward.scorers.scorer import ErrorCode, ScoreError, ScorerError, TextPair
from tests.support.real_services import make_policy
from tests.support.tiny_model import make_tiny_model

TEXTS = ("Is it?", "Which one?", "a" * 60)


@pytest_asyncio.fixture
async def target(tiny_model_path: Path) -> AsyncIterator[str]:
    """Where a policy service answers."""
    server = make_policy(tiny_model_path)
    await server.start()
    await server.wait_ready()
    yield f"127.0.0.1:{server.port}"
    await server.stop()


def config(target: str, tokenizer: Path, **settings: object) -> JudgeConfig:
    values = {"backend": "policy", "endpoint": target, "tokenizer": str(tokenizer), "samples": 256, **settings}
    return JudgeConfig.model_validate(values)


def exact_probabilities(path: Path, text: str) -> torch.Tensor:
    """The model's probabilities of the first token of its answer; [vocabulary]."""
    ids = load_tokenizer(path).apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    with torch.inference_mode():
        logits = load_policy(path, dtype="float32")(torch.tensor([ids])).logits[0, -1]
    return torch.softmax(logits.double(), 0)


async def test_what_is_drawn_has_its_exact_probability_and_bounds_the_reward(
    target: str, tiny_model_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model_path)
    exact = [exact_probabilities(tiny_model_path, text) for text in TEXTS]
    letters = [index for index in range(260) if str(tokenizer.decode([index])).isalpha()]  # a byte alone may be no text
    likeliest = [sorted(letters, key=lambda index: -each[index])[:2] for each in exact]
    questions = [
        Question(text, *(str(tokenizer.decode([index])) for index in answers), ignore_case=False)
        for text, answers in zip(TEXTS, likeliest, strict=True)
    ]
    backend = PolicyBackend(config(target, tiny_model_path, max_concurrency=2))
    await backend.connect()
    found = await backend.ask(questions)
    again = await backend.ask(questions)
    await backend.close()
    for question, drawn, same, probabilities, answers in zip(questions, found, again, exact, likeliest, strict=True):
        assert isinstance(drawn, FirstTokens)
        assert isinstance(same, FirstTokens)
        assert sorted(text for text, _ in drawn.logprobs) == sorted(text for text, _ in same.logprobs)
        listed = sorted((math.exp(logprob) for _, logprob in drawn.logprobs), reverse=True)
        for probability in listed:  # each is one of the model's, to the rounding of its batch
            assert (probabilities - probability).abs().min() < 1e-5
        first, second = (float(probabilities[index]) for index in answers)
        unseen = 1 - sum(listed)
        answer = probability_of_first(drawn, question, min_answer_probability=0.001, max_uncertainty=0.499)
        assert isinstance(answer, float)
        assert abs(answer - first / (first + second)) <= unseen / 2 / (first + second + unseen) + 1e-4


async def test_a_model_that_does_not_answer_and_a_question_that_is_too_long_give_no_reward(
    target: str, tiny_model_path: Path
) -> None:
    scorer = await asyncio.to_thread(build_judge_scorer, config(target, tiny_model_path), None)
    (outcome,) = await asyncio.to_thread(scorer.score, [TextPair("task", "answer")])
    assert isinstance(outcome, ScoreError)  # the question alone has more bytes than the tiny model takes
    assert outcome.code is ErrorCode.TOO_LONG
    await asyncio.to_thread(scorer.close)


async def test_other_weights_are_another_judge(target: str, tiny_model_path: Path, tmp_path: Path) -> None:
    backend = PolicyBackend(config(target, tiny_model_path))
    weights = await backend.connect()
    assert weights == checkpoint_manifest(tiny_model_path, "float32").digest
    other = load_policy(make_tiny_model(tmp_path / "other", seed=1), dtype="float32")
    async with PolicyClient(target) as client:
        payload = (tensor_bytes(tensor) for _, tensor in checkpoint_tensors(other))
        await client.update_weights(PushHeader.full(1, model_manifest(other)), payload)
    with pytest.raises(ScorerError, match="serves other weights than when this service started") as caught:
        await backend.ask([Question("Is it?", "Yes", "No", ignore_case=True)])
    assert caught.value.code is ErrorCode.UNAVAILABLE
    await backend.close()


async def test_a_policy_that_is_away_is_no_fault_of_the_items(tiny_model_path: Path) -> None:
    server = make_policy(tiny_model_path)
    await server.start()
    await server.wait_ready()
    backend = PolicyBackend(config(f"127.0.0.1:{server.port}", tiny_model_path))
    await backend.connect()
    await server.stop()
    with pytest.raises(ScorerError, match="the judge's policy service at") as caught:
        await backend.ask([Question("Is it?", "Yes", "No", ignore_case=True)])
    assert caught.value.code is ErrorCode.UNAVAILABLE
    await backend.close()


async def test_another_tokenizer_ends_the_start(target: str, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other")
    tokenizer = load_tokenizer(other)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ConfigError, match="which is not the tokenizer of the policy service"):
        await asyncio.to_thread(build_judge_scorer, config(target, other), None)
