"""Updaters of every online algorithm around fresh copies of the tiny models, and batches whose numbers are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.learning.batch import Batch, collate
from rlhf.learning.config import OptimizerConfig
from rlhf.learning.sample import Sample
from rlhf.learning.trained_model import TrainedModel
from rlhf.learning.update import Updater
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import PolicyModel, completion_logprobs
from rlhf.models.scalar_model import ScalarModel
from rlhf.rollout import Rollout
from services.trainer.config.online import OnlineRunConfig, PpoRunConfig
from services.trainer.loading import make_updater
from services.trainer.trainings import ONLINE


def sample(
    prompt_ids: list[int], completion_ids: list[int], reward: float, group: str = "0", *, stopped: bool = True
) -> Sample:
    rollout = Rollout(
        rollout_id=f"{group}/0",
        group_id=group,
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        logprobs=[-1.0] * len(completion_ids),
        policy_versions=[1] * len(completion_ids),
        finish_reason="stop" if stopped else "length",
    )
    return Sample(rollout=rollout, rewards={"reward": reward}, ref_logprobs=[-1.5] * len(completion_ids))


# Two prompts with two completions each: 4 + 2 + 3 + 5 = 14 completion tokens.
SAMPLES = [
    sample([5, 6], [10, 11, 12, 13], 1.0, "0"),
    sample([5, 6], [20, 21], -1.0, "0"),
    sample([8, 9, 10], [30, 31, 32], 0.5, "1"),
    sample([8, 9, 10], [40, 41, 42, 43, 44], -0.5, "1"),
]

ALGORITHM_NAMES = tuple(ONLINE)


class Maker:
    """Makes configurations and updaters."""

    def __init__(self, policy_path: Path, critic_path: Path) -> None:
        self.policy_path, self.critic_path = policy_path, critic_path

    def config(self, algorithm: str = "ppo", **sections: dict[str, Any]) -> OnlineRunConfig:
        """Returns a configuration; each keyword is a section."""
        grouped = {"training": {"prompts_per_step": 2, "group_size": 2}}
        values: dict[str, Any] = {
            "run_dir": "unused",
            "model": {"path": self.policy_path, "dtype": "float32"},
            "prompts": {"path": "unused"},
        }
        if algorithm == "ppo":
            values["critic"] = {"path": self.critic_path}
        for name, section in {**grouped, **sections}.items():
            values[name] = {**grouped.get(name, {}), **values.get(name, {}), **section}
        if values.get("critic", {}).get("kind") == "head":
            del values["critic"]["path"]
        return ONLINE[algorithm].config_class.model_validate(values)

    def __call__(
        self, algorithm: str = "ppo", *, learning_rate: float = 1e-3, demonstrations: Any = None, **sections: Any
    ) -> Updater:
        config = self.config(algorithm, **sections)
        # No gradient is scaled down, so that gradients of different losses can be compared.
        optimizer = OptimizerConfig(learning_rate=learning_rate, max_grad_norm=1e9)
        model = load_policy(self.policy_path, dtype="float32")
        head, critic = None, None
        if isinstance(config, PpoRunConfig):
            if config.critic.kind == "head":
                head = zero_head(model.config.hidden_size)
            else:
                scalar = ScalarModel.load(self.critic_path, "float32")
                critic = TrainedModel("critic", scalar, optimizer, total_steps=100)
        policy = TrainedModel("policy", PolicyModel(model, head), optimizer, total_steps=100)
        return make_updater(config, policy, critic=critic, demonstrations=demonstrations)


def zero_head(hidden_size: int) -> nn.Linear:
    head = nn.Linear(hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head


def weights(updater: Updater) -> Tensor:
    modules = [updater.policy.module] + ([updater.critic.trained.module] if updater.critic is not None else [])
    return torch.cat([parameter.detach().flatten() for module in modules for parameter in module.parameters()])


def policy_weights(updater: Updater) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in updater.policy.module.parameters()])


def moments(updater: Updater) -> Tensor:
    """Adam's first moment after one step: a tenth of the clipped gradient, without the step's sign-like scaling."""
    models = [updater.policy] + ([updater.critic.trained] if updater.critic is not None else [])
    tensors = [item for model in models for item in sorted(model.optimizer.state_tensors().items())]
    return torch.cat([tensor.flatten() for name, tensor in tensors if name.endswith("exp_avg")])


def policy_logprobs(updater: Updater, batch: Batch) -> Tensor:
    module = updater.policy.module
    assert isinstance(module, PolicyModel)
    with torch.no_grad():
        return completion_logprobs(module, batch.sequences, 1.0)


def on_policy(updater: Updater, samples: list[Sample] = SAMPLES, *, kl: float = 0.0, mismatch: float = 0.0) -> Batch:
    """Returns a batch whose policy is `kl` nats a token from the reference and `mismatch` above the sampler."""
    batch = collate(samples)
    logprobs = policy_logprobs(updater, batch)
    mask = batch.completion_mask
    return replace(
        batch,
        sampler_logprobs=(logprobs - mismatch).masked_fill(~mask, 0.0),
        ref_logprobs=(logprobs - kl).masked_fill(~mask, 0.0),
    )
