"""Our side of bench/train.py: the trainings as `rlhf train` runs them, with their defaults, a step at a time."""

from collections.abc import Callable
from typing import Any

from torch import nn

from bench.train_work import TrainWork
from rlhf.data.chat import ChatExample
from rlhf.data.preferences import Choice, PreferenceGroup
from rlhf.learning.batch import collate
from rlhf.learning.config import OptimizerConfig
from rlhf.learning.ranks import Ranks
from rlhf.learning.sample import TRAINING_REWARD, Sample
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import PolicyModel
from rlhf.models.scalar_model import ScalarModel
from rlhf.process import keep_freed_memory
from rlhf.rollout import Rollout
from services.trainer.config.offline import DpoConfig, FitConfig, OfflineOptimizerConfig
from services.trainer.config.online import PpoRunConfig
from services.trainer.loading import make_updater
from services.trainer.offline.dpo.data import DpoExample
from services.trainer.offline.dpo.tasks import DpoTask
from services.trainer.offline.fit import Task, train_step
from services.trainer.offline.reward_model.task import RewardModelTask
from services.trainer.offline.sft import SftTask

MODES = ("bf16",)
"""Forward and backward passes in bfloat16, master weights and optimizer in float32."""

SCHEDULE_STEPS = 100
"""Length of the learning rate's schedule, which a step's time does not depend on."""


def step_of(task: str, work: TrainWork) -> Callable[[], object]:
    """Returns a function that takes one optimizer step of a task (train_work.TASKS)."""
    keep_freed_memory()
    return {"sft": _sft, "reward": _reward, "dpo": _dpo, "ppo": _ppo}[task](work)


def _sft(work: TrainWork) -> Callable[[], object]:
    policy = PolicyModel(load_policy(work.policy_path, dtype="bfloat16"))
    examples = [
        ChatExample((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))
        for prompt, completion in work.conversations
    ]
    return _fit_step(SftTask(policy), policy, examples)


def _reward(work: TrainWork) -> Callable[[], object]:
    model = ScalarModel.load(work.scalar_path, "bfloat16")
    examples = [
        PreferenceGroup(tuple(prompt), (tuple(chosen), tuple(rejected)), (Choice(0, 1),))
        for prompt, chosen, rejected in work.pairs
    ]
    return _fit_step(RewardModelTask(model), model, examples)


def _dpo(work: TrainWork) -> Callable[[], object]:
    """The reference's log-probabilities come from the data, as they do after the reference service was asked once."""
    policy = PolicyModel(load_policy(work.policy_path, dtype="bfloat16"))
    examples = [
        DpoExample(tuple(prompt), tuple(chosen), tuple(rejected), 1.0, -10.0 * len(chosen), -10.0 * len(rejected))
        for prompt, chosen, rejected in work.pairs
    ]
    return _fit_step(DpoTask(policy, DpoConfig()), policy, examples)


def _fit_step(task: Task[Any], module: nn.Module, examples: list[Any]) -> Callable[[], object]:
    trained = TrainedModel("model", module, OfflineOptimizerConfig(), total_steps=SCHEDULE_STEPS)
    max_tokens = FitConfig().micro_batch_tokens
    return lambda: train_step(task, trained, examples, micro_batch_tokens=max_tokens, ranks=Ranks())


def _ppo(work: TrainWork) -> Callable[[], object]:
    config = PpoRunConfig.model_validate(
        {
            "run_dir": "unused",
            "model": {"path": work.policy_path},
            "prompts": {"path": "unused"},
            "critic": {"path": work.scalar_path},
            "training": {"prompts_per_step": len(work.conversations)},
        }
    )
    policy = PolicyModel(load_policy(work.policy_path, dtype="bfloat16"))
    critic = ScalarModel.load(work.scalar_path, "bfloat16")
    updater = make_updater(
        config,
        TrainedModel("policy", policy, OptimizerConfig(), total_steps=SCHEDULE_STEPS),
        critic=TrainedModel("critic", critic, config.critic_optimizer, total_steps=SCHEDULE_STEPS),
    )
    batch = collate([_sample(number, *each) for number, each in enumerate(work.conversations)])
    return lambda: updater.update(batch, 1)


def _sample(number: int, prompt_ids: list[int], completion_ids: list[int]) -> Sample:
    count = len(completion_ids)
    rollout = Rollout(
        rollout_id=f"{number}/0",
        group_id=str(number),
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        logprobs=[-10.0] * count,
        policy_versions=[1] * count,
        finish_reason="stop",
    )
    return Sample(rollout=rollout, rewards={TRAINING_REWARD: float(number % 2)}, ref_logprobs=[-10.0] * count)
