"""A module with its optimizer on one rank."""

from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from rlhf_services.trainer.checkpoint import load_optimizer, save_optimizer
from rlhf_services.trainer.config import OptimizerConfig
from rlhf_services.trainer.learning.optimizer import MasterOptimizer, OptimizerStep


class OneRankModel:
    """Trains a module as it is, in this process alone."""

    def __init__(self, name: str, module: nn.Module, config: OptimizerConfig, *, total_steps: int) -> None:
        self.module = module
        self._optimizer = MasterOptimizer(name, module, config, total_steps=total_steps)

    def step(self) -> OptimizerStep:
        """Takes one step with the gradient gathered so far, and forgets the gradient."""
        return self._optimizer.step()

    def save_state(self, directory: Path) -> None:
        """Writes weights and optimizer into a directory that is there."""
        save_model(self.module, str(directory / "model.safetensors"))
        save_optimizer(directory / "optimizer.safetensors", self._optimizer)

    def load_state(self, directory: Path) -> None:
        """Takes over what save_state wrote."""
        load_model(self.module, directory / "model.safetensors")
        load_optimizer(directory / "optimizer.safetensors", self._optimizer)
