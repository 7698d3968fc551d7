"""The losses on pairs and on judged completions, on the tiny model: by hand, and whatever the split."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.algorithms.variants import VARIANTS
from rlhf.learning.ranks import Ranks
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import PolicyModel
from services.trainer.config.offline import DpoConfig, OfflineOptimizerConfig
from services.trainer.offline.dpo.data import DpoExample, KtoExample, with_other_completions
from services.trainer.offline.dpo.tasks import DpoTask, KtoTask
from services.trainer.offline.fit import Task, measure, train_step

PAIRS = [
    DpoExample((5, 6), (7, 1), (8, 9, 1), 1.0, -11.0, -16.0),
    DpoExample((5,), (11, 12, 13, 1), (13, 1), 1.0, -20.0, -11.5),
    DpoExample((6, 6, 6), (14, 1), (15, 1), 0.75, -10.0, -12.0),
]
JUDGED = [
    KtoExample((5, 6), (7, 1), True, (11, 12, 1), -11.0, -13.0),
    KtoExample((5,), (11, 12, 1), False, (14, 1), -16.0, -12.0),
    KtoExample((6, 6, 6), (14, 1), True, (), -10.0),
]


def logp_by_hand(path: Path, prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        rows = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return sum(float(rows[len(prompt) - 1 + index, token]) for index, token in enumerate(completion))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def pair_loss_by_hand(config: DpoConfig, example: DpoExample, chosen: float, rejected: float) -> float:
    """The formulas of docs/training.md for one pair whose label is certain."""
    c, r = chosen - example.ref_chosen_logp, rejected - example.ref_rejected_logp
    num_chosen, num_rejected = len(example.chosen_ids), len(example.rejected_ids)
    beta, e = config.beta_in_use, config.label_smoothing
    avg_chosen, avg_rejected = chosen / num_chosen, rejected / num_rejected
    odds = [avg - math.log(1 - math.exp(avg)) for avg in (avg_chosen, avg_rejected)]
    return {
        "sigmoid": -(1 - e) * log_sigmoid(beta * (c - r)) - e * log_sigmoid(-beta * (c - r)),
        "robust": (-(1 - e) * log_sigmoid(beta * (c - r)) + e * log_sigmoid(-beta * (c - r))) / (1 - 2 * e),
        "hinge": max(0.0, 1 - beta * (c - r)),
        "ipo": (c / num_chosen - r / num_rejected - 1 / (2 * beta)) ** 2,
        "simpo": -log_sigmoid(beta * (avg_chosen - avg_rejected) - config.simpo_margin),
        "orpo": -avg_chosen - config.odds_weight * log_sigmoid(odds[0] - odds[1]),
    }[config.variant]


def swapped(example: DpoExample) -> DpoExample:
    return DpoExample(
        example.prompt_ids,
        example.rejected_ids,
        example.chosen_ids,
        1.0,
        example.ref_rejected_logp,
        example.ref_chosen_logp,
    )


CONFIGS = [
    DpoConfig(),
    DpoConfig(label_smoothing=0.2, beta=0.3),
    DpoConfig(variant="robust", label_smoothing=0.2),
    DpoConfig(variant="hinge", beta=0.05),
    DpoConfig(variant="ipo"),
    DpoConfig(variant="simpo"),
    DpoConfig(variant="orpo", odds_weight=0.5),
    DpoConfig(nll_coef=0.7),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.variant}-{config.nll_coef:g}")
def test_the_loss_of_pairs_is_that_of_the_formula(tiny_model_path: Path, config: DpoConfig) -> None:
    policy = PolicyModel(load_policy(tiny_model_path, dtype="float32"))
    metrics = measure(DpoTask(policy, config), PAIRS, micro_batch_tokens=16, ranks=Ranks())
    losses, chosen_logps, rewards = [], [], []
    for example in PAIRS:
        chosen, rejected = (
            logp_by_hand(tiny_model_path, example.prompt_ids, ids) for ids in (example.chosen_ids, example.rejected_ids)
        )
        right = pair_loss_by_hand(config, example, chosen, rejected)
        wrong = pair_loss_by_hand(config, swapped(example), rejected, chosen)
        nll = -config.nll_coef * chosen / len(example.chosen_ids)
        losses.append(example.target * right + (1 - example.target) * wrong + nll)
        chosen_logps.append(chosen)
        rewards.append(config.beta_in_use * (chosen - example.ref_chosen_logp))
    assert metrics["loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert metrics["chosen_logp"] == pytest.approx(sum(chosen_logps) / 3, rel=1e-5)
    assert metrics["pairs"] == 3
    if config.needs_reference:
        assert metrics["chosen_reward"] == pytest.approx(sum(rewards) / 3, rel=1e-4)
        assert metrics["margin"] == pytest.approx(metrics["chosen_reward"] - metrics["rejected_reward"])


def test_the_loss_of_judged_completions_is_ktos_around_the_batchs_kl(tiny_model_path: Path) -> None:
    policy = PolicyModel(load_policy(tiny_model_path, dtype="float32"))
    config = DpoConfig(variant="kto", desirable_weight=1.5, undesirable_weight=0.5)
    metrics = measure(KtoTask(policy, config, 8, Ranks()), JUDGED, micro_batch_tokens=8, ranks=Ranks())
    others = [
        logp_by_hand(tiny_model_path, each.prompt_ids, each.other_ids) - each.ref_other_logp for each in JUDGED[:2]
    ]
    kl = max(0.0, sum(others) / 2)
    losses = []
    for each in JUDGED:
        ratio = logp_by_hand(tiny_model_path, each.prompt_ids, each.completion_ids) - each.ref_logp
        sign, weight = (1, 1.5) if each.is_desirable else (-1, 0.5)
        losses.append(weight * (1 - 1 / (1 + math.exp(-0.1 * sign * (ratio - kl)))))
    assert metrics["kl"] == pytest.approx(kl, rel=1e-4)
    assert metrics["loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)


def make_task(policy: PolicyModel, config: DpoConfig, max_tokens: int) -> tuple[Task, list]:
    if config.variant == "kto":
        return KtoTask(policy, config, max_tokens, Ranks()), JUDGED
    return DpoTask(policy, config), PAIRS


@pytest.mark.parametrize("config", [*CONFIGS, DpoConfig(variant="kto")], ids=lambda config: config.variant)
def test_the_step_does_not_depend_on_the_split_into_micro_batches(tiny_model_path: Path, config: DpoConfig) -> None:
    results = []
    for max_tokens in (1, 20, 1000):
        policy = PolicyModel(load_policy(tiny_model_path, dtype="float32"))
        trained = TrainedModel("policy", policy, OfflineOptimizerConfig(), total_steps=1)
        task, batch = make_task(policy, config, max_tokens)
        results.append(train_step(task, trained, batch, micro_batch_tokens=max_tokens, ranks=Ranks()))
    for metrics in results[1:]:
        assert metrics["loss"] == pytest.approx(results[0]["loss"], rel=1e-4)
        assert metrics["grad_norm"] == pytest.approx(results[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_teaches_the_policy_to_prefer_the_chosen(tiny_model_path: Path, variant: str) -> None:
    policy = PolicyModel(load_policy(tiny_model_path, dtype="float32"))
    config = DpoConfig.model_validate({"variant": variant})
    examples = [replace(example, target=1.0) for example in PAIRS]
    trained = TrainedModel("policy", policy, OfflineOptimizerConfig(learning_rate=3e-3, warmup_steps=0), total_steps=20)
    task: Task = DpoTask(policy, config)
    batch: list = examples
    if variant == "kto":
        sides = [
            (each, ids, good)
            for each in examples
            for ids, good in ((each.chosen_ids, True), (each.rejected_ids, False))
        ]
        batch = with_other_completions(
            [KtoExample(each.prompt_ids, ids, good, (), -10.0) for each, ids, good in sides], 99
        )
        task = KtoTask(policy, config, 64, Ranks())
    steps = [train_step(task, trained, batch, micro_batch_tokens=64, ranks=Ranks()) for _ in range(20)]
    assert steps[-1]["margin"] > steps[0]["margin"] + 0.01
    if variant != "kto":
        assert steps[-1]["accuracy"] == 1.0


def test_other_completions_are_of_other_prompts_and_fit() -> None:
    examples = [KtoExample((5,), (6, 7), True), KtoExample((5,), (8,), False), KtoExample((9, 9), (10, 11, 12), True)]
    with_others = with_other_completions(examples, max_tokens=4)
    # The first two share a prompt: the third's completion is theirs. It takes the first one's.
    assert [each.other_ids for each in with_others] == [(10, 11, 12), (10, 11, 12), (6, 7)]
    assert [each.other_ids for each in with_other_completions(examples, max_tokens=3)] == [(), (), (8,)]
