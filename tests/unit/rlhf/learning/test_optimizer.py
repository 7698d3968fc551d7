"""AdamW on float32 masters."""

import math

import pytest
import torch
from torch import nn

from rlhf.errors import NonFiniteError
from rlhf.learning.config import OptimizerConfig
from rlhf.learning.optimizer import MasterOptimizer, learning_rate_at


def make_optimizer(module: nn.Module, **settings: float) -> MasterOptimizer:
    config = OptimizerConfig.model_validate({"learning_rate": 0.1, "max_grad_norm": 1e9, **settings})
    return MasterOptimizer("policy", module, config, total_steps=100)


def copy_state(source: MasterOptimizer, target: MasterOptimizer) -> None:
    state = source.state_tensors()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    with target.restoring(source.num_steps, source.adam_steps(), shapes) as tensors:
        for name, tensor in state.items():
            tensors[name].copy_(tensor)


def make_linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


def test_the_learning_rate_warms_up_and_decays_linearly() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, final_learning_rate_fraction=0.0)
    # 1/2, 2/2 while warming up; then 4 steps from 1 towards 0: 1, 3/4, 1/2, 1/4
    rates = [learning_rate_at(step, 6, config) for step in range(6)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_the_first_step_moves_each_weight_by_the_learning_rate() -> None:
    module = nn.Linear(2, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    module(torch.tensor([[2.0, -3.0]])).sum().backward()  # gradients 2 and -3
    report = make_optimizer(module, eps=1e-12).step()
    # The first step of Adam is the sign of the gradient: 1 - 0.1 and 1 + 0.1. Norm sqrt(4 + 9).
    torch.testing.assert_close(module.weight.detach(), torch.tensor([[0.9, 1.1]]))
    assert report.grad_norm == pytest.approx(math.sqrt(13))
    assert report.learning_rate == 0.1


def test_micro_batch_gradients_add_up_in_float32() -> None:
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = make_optimizer(module)
    # 256 + 1 + 1 is 258 in float32; bfloat16 has 8 significant bits and would stay at 256.
    for gradient in (256.0, 1.0, 1.0):
        module(torch.tensor([[gradient]], dtype=torch.bfloat16)).sum().backward()
        assert module.weight.grad is None
    assert optimizer.step().grad_norm == 258.0


def test_updates_too_small_for_bfloat16_add_up_in_the_master() -> None:
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(module.weight, 1.0)
    optimizer = make_optimizer(module, learning_rate=1e-3)
    for _ in range(10):
        module(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    # Ten times 0.001 below 1; one alone is under half of bfloat16's spacing below 1 (0.0039) and would be lost.
    master = optimizer.state_tensors()["weight.master"]
    torch.testing.assert_close(master, torch.tensor([[0.99]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(module.weight.detach(), master.to(torch.bfloat16))


def test_gradients_are_clipped_by_their_global_norm() -> None:
    clipped, free = make_linear(torch.float32), make_linear(torch.float32)
    for module in (clipped, free):
        module(torch.ones(1, 3)).sum().backward()
    # Adam's first step does not see the scale, so look at the moments: beta1 = 0.9 makes exp_avg 0.1 * gradient.
    # 6 weights and 2 biases with gradient 1: norm sqrt(8); clipped to 1 each is 1 / sqrt(8).
    optimizer = make_optimizer(clipped, max_grad_norm=1.0)
    assert optimizer.step().grad_norm == pytest.approx(math.sqrt(8))
    moment = optimizer.state_tensors()["weight.exp_avg"]
    torch.testing.assert_close(moment, torch.full((2, 3), 0.1 / math.sqrt(8)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_non_finite_gradient_is_refused_before_anything_changes(dtype: torch.dtype) -> None:
    module = make_linear(dtype)
    before = module.weight.detach().clone()
    optimizer = make_optimizer(module)
    module(torch.full((1, 3), math.nan, dtype=dtype)).sum().backward()
    with pytest.raises(NonFiniteError, match="gradient norm of the policy is nan"):
        optimizer.step()
    assert torch.equal(module.weight.detach(), before)
    module(torch.ones(1, 3, dtype=dtype)).sum().backward()  # the bad gradient is forgotten
    assert math.isfinite(optimizer.step().grad_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_takes_the_same_next_step_bit_for_bit(dtype: torch.dtype) -> None:
    module = make_linear(dtype)
    optimizer = make_optimizer(module, warmup_steps=5)
    inputs = torch.randn(4, 3, dtype=dtype)

    def train_step(module: nn.Module, optimizer: MasterOptimizer) -> None:
        module(inputs).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        train_step(module, optimizer)
    twin = make_linear(dtype)
    twin.load_state_dict({key: value.clone() for key, value in module.state_dict().items()})
    restored = make_optimizer(twin, warmup_steps=5)
    copy_state(optimizer, restored)
    train_step(module, optimizer)
    train_step(twin, restored)
    assert restored.num_steps == 4
    assert torch.equal(module.weight, twin.weight)
    states = optimizer.state_tensors(), restored.state_tensors()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_state_of_another_model_is_refused() -> None:
    optimizer = make_optimizer(make_linear(torch.bfloat16))
    other = make_optimizer(nn.Linear(4, 2).to(torch.bfloat16))
    with pytest.raises(ValueError, match=r"another model: weight\.master has shape \(2, 4\) there, \(2, 3\) here"):
        copy_state(other, optimizer)


def test_a_step_without_a_backward_pass_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no gradient"):
        make_optimizer(make_linear(torch.float32)).step()


def test_frozen_parameters_stay() -> None:
    module = make_linear(torch.bfloat16)
    module.bias.requires_grad_(False)
    bias = module.bias.detach().clone()
    optimizer = make_optimizer(module)
    module(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    assert torch.equal(module.bias, bias)
    assert "bias.master" not in optimizer.state_tensors()
