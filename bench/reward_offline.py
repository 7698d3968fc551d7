"""Tokens per second of a reward model in a loop over ideal batches: python bench/reward_offline.py --help

No service, no queue, no tokenizer: the ids are there, lie in batches that are as full as the budget allows, and the
thread that runs the model does nothing else. Which budget is ideal is tried first, unless it is given.
"""

import argparse
import itertools
import time
from pathlib import Path

import torch

from bench.measurements import say, write_json
from bench.reward_work import RewardWork
from rlhf.models.attention import NAME
from rlhf.models.scalar_model import ScalarModel, sequence_scores
from rlhf.models.sequences import pad_whole
from rlhf.process import keep_freed_memory
from rlhf.serving.batching.queue import plan_batches

BUDGETS = (512, 1024, 2048, 4096, 8192)
"""Tokens of a batch, tried in turn."""


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="file of RewardWork")
    parser.add_argument("--seconds", type=float, required=True, help="of the measurement, and of all trials together")
    parser.add_argument("--budget", type=int, help="tokens of a batch; the fastest of several if absent")
    parser.add_argument("--output", required=True, help="file for the result as JSON")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the service does
    work = RewardWork.load(arguments.work)
    rows = [request.ids for request in work.requests]
    model = ScalarModel.load(work.model_path, dtype="bfloat16").eval()
    tokens_per_second(model, batches_of(rows, BUDGETS[0], pads(model)), 0.0)  # warms up
    budget, trials = arguments.budget, {}
    if budget is None:
        for trial in BUDGETS:
            speed = tokens_per_second(model, batches_of(rows, trial, pads(model)), arguments.seconds / len(BUDGETS))
            trials[trial] = speed
            say(f"batches of {trial} tokens: {speed:.0f} tokens/s")
        budget = max(trials, key=trials.__getitem__)
    batches = batches_of(rows, budget, pads(model))
    tokens_per_second(model, batches, 0.0)  # a batch of this size touches memory that smaller ones did not
    speed = tokens_per_second(model, batches, arguments.seconds)
    result = {"tokens_per_second": speed, "budget": budget, "trials": trials, "threads": torch.get_num_threads()}
    write_json(result, arguments.output)


def pads(model: ScalarModel) -> bool:
    """Whether the model's batches are padded."""
    return model.backbone.config._attn_implementation != NAME


def batches_of(rows: list[list[int]], budget: int, padded: bool) -> list[list[list[int]]]:
    """All rows in batches of at most `budget` tokens, padding included."""
    if padded:
        return [[rows[index] for index in batch] for batch in plan_batches([len(row) for row in rows], budget)]
    batches: list[list[list[int]]] = []
    left = 0
    for row in rows:
        if len(row) > left:
            batches.append([])
            left = budget
        batches[-1].append(row)
        left -= len(row)
    return batches


def tokens_per_second(model: ScalarModel, batches: list[list[list[int]]], seconds: float) -> float:
    """Real tokens per second, over at least one batch and so many seconds."""
    num_tokens = 0
    begin = time.perf_counter()
    for batch in itertools.cycle(batches):
        with torch.inference_mode():
            sequence_scores(model, pad_whole(batch)).tolist()
        num_tokens += sum(map(len, batch))
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            break
    return num_tokens / elapsed


if __name__ == "__main__":
    main()
