"""AdamW on float32 master weights, for models that run forward and backward in bfloat16."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_services.trainer.config import OptimizerConfig
from rlhf_services.trainer.errors import NonFiniteError


def require_finite(quantity: str, value: Tensor | float) -> None:
    """Raises NonFiniteError, naming the quantity, unless the number is finite."""
    number = float(value)
    if not math.isfinite(number):
        raise NonFiniteError(quantity, number)


def learning_rate_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Returns the learning rate of optimizer step `step` (from 0) of `total_steps`.

    It rises linearly to the peak over warmup_steps (the first step is not 0), then falls linearly, so that the step
    after the last would have final_learning_rate_fraction of the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return config.learning_rate * (1.0 - (1.0 - config.final_learning_rate_fraction) * progress)


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """What one step did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping."""
    learning_rate: float


class MasterOptimizer:
    """AdamW over the trainable parameters of a module.

    A float32 parameter is its own master. Any other gets a float32 master copy: the gradient of each backward pass is
    added to the master's in float32 as soon as it exists (so micro-batches do not lose bits to one another, and the
    low-precision gradient is freed at once), the step is taken on the master, and the result is rounded back.
    """

    def __init__(self, name: str, module: nn.Module, config: OptimizerConfig, *, total_steps: int) -> None:
        """Args: a name for errors ("policy"); the module; its schedule's length in optimizer steps."""
        self.name = name
        self.num_steps = 0
        self._config = config
        self._total_steps = total_steps
        self._parameters = {key: each for key, each in module.named_parameters() if each.requires_grad}
        self._masters: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        for key, parameter in self._parameters.items():
            if parameter.dtype == torch.float32:
                self._masters[key] = parameter
                continue
            self._masters[key] = parameter.detach().to(torch.float32)
            self._buffers[key] = torch.empty_like(self._masters[key])
            parameter.register_post_accumulate_grad_hook(self._accumulator(key))  # type: ignore[no-untyped-call]
        matrices = [each for each in self._masters.values() if each.ndim >= 2]
        vectors = [each for each in self._masters.values() if each.ndim < 2]
        self._adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,  # one pass over the state: 0.07 s for 135M parameters on 2 cores, the other kind takes 0.6 s
        )

    def step(self) -> OptimizerStep:
        """Clips the gathered gradient, takes one step and forgets the gradient.

        Raises: NonFiniteError before anything is changed; RuntimeError if no backward pass was run.
        """
        trained = [master for master in self._masters.values() if master.grad is not None]
        if not trained:
            raise RuntimeError(f"the {self.name} optimizer has no gradient; run a backward pass before step()")
        norm = torch.nn.utils.get_total_norm([master.grad for master in trained if master.grad is not None])
        try:
            require_finite(f"the gradient norm of the {self.name}", norm)
        except NonFiniteError:
            self.zero_grad()
            raise
        torch.nn.utils.clip_grads_with_norm_(trained, self._config.max_grad_norm, norm)
        learning_rate = learning_rate_at(self.num_steps, self._total_steps, self._config)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        self.num_steps += 1
        self._round_back()
        self.zero_grad()
        return OptimizerStep(grad_norm=float(norm), learning_rate=learning_rate)

    def zero_grad(self) -> None:
        """Forgets the gradients gathered so far."""
        for key, parameter in self._parameters.items():
            parameter.grad = None
            self._masters[key].grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns what the next step depends on: masters (all trained parameters), moments, step counts. Not copies."""
        state = {"num_steps": torch.tensor(self.num_steps)}
        for key, master in self._masters.items():
            state[f"{key}.master"] = master.detach()
            for name, value in self._adam.state.get(master, {}).items():
                state[f"{key}.{name}"] = value
        return state

    def load_state_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what state_tensors returned, and rounds the masters back into the parameters.

        Raises: ValueError if the state is of another set of parameters.
        """
        expected = {f"{key}.master": master.shape for key, master in self._masters.items()}
        found = {key: value.shape for key, value in state.items() if key.endswith(".master")}
        if expected != found:
            odd = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            raise ValueError(f"the {self.name} optimizer's state is of another model: {odd[0]} differs")
        self.num_steps = int(state["num_steps"])
        for key, master in self._masters.items():
            with torch.no_grad():
                master.copy_(state[f"{key}.master"])
            moments = {name: state.get(f"{key}.{name}") for name in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] is not None:
                self._adam.state[master] = {
                    name: value.to(master.device, copy=True) for name, value in moments.items() if value is not None
                }
        self._round_back()

    def _round_back(self) -> None:
        with torch.no_grad():
            for key in self._buffers:
                self._parameters[key].copy_(self._masters[key])

    def _accumulator(self, key: str) -> Callable[[Tensor], None]:
        """Returns the hook that moves a parameter's fresh gradient into its master's."""

        def accumulate(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                return
            master, buffer = self._masters[key], self._buffers[key]
            if master.grad is None:
                master.grad = buffer.copy_(gradient)
            else:
                buffer.add_(gradient)

        return accumulate
