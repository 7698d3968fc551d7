"""A critic that is a model of its own, with its own optimizer."""

from torch import Tensor

from rlhf.learning.algorithm import Estimates
from rlhf.learning.batch import MicroBatch
from rlhf.learning.ppo import Ppo
from rlhf.learning.steps import BatchSize
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.scalar_model import ScalarModel
from rlhf.models.token_scores import completion_values


class SeparateCritic:
    """A reward model that learns to predict returns."""

    def __init__(self, trained: TrainedModel, ppo: Ppo) -> None:
        """Args: trained: around a ScalarModel. Raises: TypeError if it is around something else."""
        if not isinstance(trained.module, ScalarModel):
            raise TypeError(f"a critic is a ScalarModel, not a {type(trained.module).__name__}")
        self.trained = trained
        self._module = trained.module
        self._ppo = ppo

    def values(self, micro: MicroBatch) -> Tensor:
        """Returns the value of the state before each completion token: [b, t]. Carries gradient where it is enabled."""
        return completion_values(self._module, micro.sequences)

    def loss(
        self, micro: MicroBatch, values: Tensor, estimates: Estimates, size: BatchSize
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns a micro-batch's share of the value loss, and sums for its metrics."""
        return self._ppo.value_loss(micro, values, estimates, size)
