"""Makes the requests of the reward service's benchmark, and the model.

A request is one prompt and its completion as text. Lengths are those of a mixture as it is met in training: most of 75
to 225 tokens, some of 40, some of 400, with a fixed seed. No two requests are equal, so nothing can be remembered.
"""

import random
import sys
from pathlib import Path

from bench.fixed_work import QUESTIONS
from bench.reward_work import Request, RewardWork
from rlhf.models.loading import load_tokenizer
from rlhf.models.scalar_model import ScalarModel
from rlhf_cli.models.fetch import fetch_small_model
from rlhf_cli.models.tiny_model import make_tiny_model
from services.reward.scorers.scorer import ScoreError, TextPair
from services.reward.scorers.text import PairTokenizer

SEED = 20260
MODELS = ("smollm2", "tiny")
LENGTHS = (40, 400)
MEDIAN_LENGTH, SPREAD = 130, 0.55
"""Of the lognormal distribution that lengths are drawn from."""


def prepare_work(folder: Path, model: str, num_requests: int) -> RewardWork:
    """Returns the work; makes the reward model in the folder if it is not there yet.

    Args:
        model: smollm2 (SmolLM2-135M-Instruct under a random, seeded head) or tiny (random throughout).
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_path = folder / f"reward-{model}"
    if not (model_path / "config.json").is_file():
        _make_model(model, model_path, folder)
    return RewardWork(model_path=str(model_path), requests=_requests(model_path, num_requests))


def _make_model(model: str, target: Path, folder: Path) -> None:
    if model == "tiny":
        policy_path = make_tiny_model(folder / "tiny-policy")
    else:
        policy_path = fetch_small_model(report=lambda message: print(message, file=sys.stderr))
    # Speed does not depend on what the head says.
    scalar = ScalarModel.from_policy(policy_path, dtype="bfloat16", seed=SEED)
    scalar.save(target, load_tokenizer(policy_path))


def _requests(model_path: Path, count: int) -> list[Request]:
    """Questions, and answers of words drawn at random, cut to the wanted number of tokens."""
    generator = random.Random(SEED)
    tokenizer = load_tokenizer(model_path)
    pairs = PairTokenizer(model_path)
    words = sorted({word for question in QUESTIONS for word in question.split()})
    requests = []
    for index in range(count):
        wanted = min(max(generator.lognormvariate(0, SPREAD) * MEDIAN_LENGTH, LENGTHS[0]), LENGTHS[1])
        question = f"{index}. {QUESTIONS[index % len(QUESTIONS)]}"
        empty = pairs.encode(TextPair(question, " "), LENGTHS[1])
        taken = 0 if isinstance(empty, ScoreError) else len(empty)
        words_ids = tokenizer(" ".join(generator.choices(words, k=LENGTHS[1])))["input_ids"]
        completion = tokenizer.decode(words_ids[: max(1, int(wanted) - taken)])
        ids = pairs.encode(TextPair(question, completion), LENGTHS[1] * 2)
        if isinstance(ids, ScoreError):
            raise ValueError(f"request {index}: {ids.message}")
        requests.append(Request(question, completion, ids, tokenizer.decode(ids)))
    return requests
