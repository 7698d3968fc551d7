"""A module in shards: each rank holds a part of every parameter (FSDP2); weights are gathered a layer at a time."""

import re
from collections.abc import Iterator, Mapping
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rlhf.learning.ranks import Ranks

LAYER_PREFIX = re.compile(r".*?layers\.\d+\.")


def shard(module: nn.Module, ranks: Ranks, dtype: torch.dtype) -> None:
    """Divides a module's parameters among the ranks, in place; the same module must be there on every rank.

    Trained parameters become float32 shards: forward and backward run in `dtype`, gradients are SUMMED over the ranks
    in float32. All parameters must be used inside the module's forward, which may run several times before backward.
    """
    device = next(module.parameters()).device
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for each in (*_decoder_layers(module), module):
        # A layer at a time, so that the float32 model is never whole on one device.
        _train_in_float32(each)
        fully_shard(each, mesh=mesh, mp_policy=policy)
    for part in _parts(module):
        # Losses are normalised over the batch of all ranks, so their gradients add up. Divided by 1 after a plain sum:
        # gloo has no reduction that scales.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def reshard(module: nn.Module) -> None:
    """Frees what a forward pass without a backward pass left gathered: after a change it would be out of date."""
    for part in _parts(module):
        part.reshard()


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a parameter, or the whole of one that is not divided; memory is shared."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def like(part: Tensor, whole: Tensor) -> Tensor:
    """Returns this rank's part as a tensor that is divided as `whole` is, or as it is if `whole` is not divided."""
    if not isinstance(whole, DTensor):
        return part
    return DTensor.from_local(
        part, whole.device_mesh, whole.placements, run_check=False, shape=whole.size(), stride=whole.stride()
    )


def gather_by_layer(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Yields the tensors whole, floating ones in `dtype`, those of a decoder layer together, without gradient.

    Every rank must iterate to the end. A tensor that is neither divided nor of another type is not copied.
    """
    for _, names in groupby(tensors, lambda name: found.group() if (found := LAYER_PREFIX.match(name)) else ""):
        yield {name: _whole(tensors[name].detach(), dtype) for name in names}


def _whole(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)  # before it is gathered: half the bytes
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of the largest list of modules, which in a decoder are its layers."""
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    return [*max(lists, key=lambda each: sum(parameter.numel() for parameter in each.parameters()))]


def _train_in_float32(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(torch.float32)


def _parts(module: nn.Module) -> list[FSDPModule]:
    return [each for each in module.modules() if isinstance(each, FSDPModule)]
