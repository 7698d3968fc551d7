"""Weights as tensors named as in a Hugging Face checkpoint: listing, digests, loading in place, views of a file."""

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rlhf.errors import ConfigError, InvalidRequestError
from rlhf.models.loading import TORCH_DTYPES, DtypeName, load_policy, require_model_folder
from rlhf.weights import TensorInfo, WeightsManifest, tensor_digest

DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
)
"""Names in safetensors of the element types that can be served."""
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()} | {"I64": torch.int64}
"""Element types by these names, and that of a staged patch's indices."""


def checkpoint_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor of the model's checkpoint with its name there: contiguous, on the CPU, without gradient.

    A tensor that is tied to another (the output projection to the embedding) is left out, as in a saved checkpoint. The
    tensors of a model on the CPU are not copied: they change with the model.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    for name, tensor in revert_weight_conversion(model, own).items():
        yield name, tensor.detach().cpu().contiguous()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Returns the raw little-endian bytes of a contiguous CPU tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def tensor_info(name: str, tensor: Tensor) -> TensorInfo:
    """Returns the manifest entry of a contiguous CPU tensor. Raises: ConfigError if its type cannot be served."""
    if tensor.dtype not in DTYPE_NAMES:
        raise ConfigError(f"tensor {name} is {tensor.dtype}; weights are served as {', '.join(DTYPE_NAMES.values())}")
    return TensorInfo(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), tensor_digest(tensor_bytes(tensor)))


def model_manifest(model: PreTrainedModel) -> WeightsManifest:
    """Returns the names, types, shapes and digests of a model's checkpoint tensors."""
    return WeightsManifest(tuple(tensor_info(name, tensor) for name, tensor in checkpoint_tensors(model)))


def checkpoint_manifest(path: str | Path, dtype: DtypeName) -> WeightsManifest:
    """Returns the manifest of the policy in a folder as loaded in `dtype`.

    Raises: ConfigError if the folder holds no causal language model.
    """
    return WeightsManifest(tuple(tensor_info(name, tensor) for name, tensor in read_checkpoint(path, dtype)))


def read_checkpoint(path: str | Path, dtype: DtypeName) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors that checkpoint_tensors yields for the policy in a folder, loaded in `dtype`.

    The files are read one tensor at a time, so no second model is in memory beside an engine that serves one. Only if
    transformers renames or merges tensors while loading is the model loaded.

    Raises: ConfigError if the folder holds no causal language model.
    """
    folder = require_model_folder(path)
    names = _checkpoint_names(folder)
    files = _safetensors_files(folder)
    if not files.keys() >= set(names):
        yield from checkpoint_tensors(load_policy(folder, dtype=dtype))
        return
    for name in names:
        with safe_open(files[name], framework="pt") as reader:
            yield name, reader.get_tensor(name).to(TORCH_DTYPES[dtype]).contiguous()


def load_tensors(model: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copies the tensors of a whole checkpoint into the model in place, after checking that all of them fit.

    Raises: InvalidRequestError naming the tensor that is missing, unknown, duplicate, or of another type or shape. The
        model is then unchanged.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    staged: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name not in own:
            raise InvalidRequestError(f"tensors has '{name}', which the model has not; push a checkpoint of this model")
        if name in staged:
            raise InvalidRequestError(f"tensors has '{name}' twice; send each tensor once")
        _require_like(name, tensor, own[name])
        staged[name] = tensor
    if missing := own.keys() - staged.keys():
        raise InvalidRequestError(
            f"tensors lacks {len(missing)} of the model's {len(own)}, '{min(missing)}' among them; push all of them"
        )
    with torch.no_grad():
        for name, tensor in staged.items():
            own[name].copy_(tensor)


def _require_like(name: str, tensor: Tensor, own: Tensor) -> None:
    if tensor.shape != own.shape:
        raise InvalidRequestError(f"tensor '{name}' has shape {list(tensor.shape)}; the model's has {list(own.shape)}")
    if tensor.dtype != own.dtype:
        raise InvalidRequestError(f"tensor '{name}' is {tensor.dtype}; the model serves {own.dtype}: cast it first")


def _checkpoint_names(folder: Path) -> list[str]:
    """Returns the names that checkpoint_tensors yields, without loading the weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    return [name for name in model.state_dict() if name not in model.all_tied_weights_keys]


def _safetensors_files(folder: Path) -> dict[str, Path]:
    """Returns the safetensors file of each tensor in the folder."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as reader:
            files.update(dict.fromkeys(reader.keys(), path))
    return files


def map_tensors(
    path: str, num_bytes: int, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], offsets: Sequence[int]
) -> list[Tensor]:
    """Returns CPU tensors that view a file of raw little-endian elements in place; they keep the mapping alive.

    Args:
        path: the file, such as a staged push's.
        num_bytes: its size.
        dtypes, shapes, offsets: one of each per tensor; dtypes are keys of DTYPES, offsets in bytes.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        # A private mapping counts as writable, which torch asks for, and never writes through to the file.
        mapping = mmap.mmap(fd, num_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)
    return [
        view_tensor(mapping, dtype, shape, offset) for dtype, shape, offset in zip(dtypes, shapes, offsets, strict=True)
    ]


def view_tensor(mapping: mmap.mmap, dtype: str, shape: Sequence[int], offset: int) -> Tensor:
    """Returns a tensor that views mapped memory in place; it keeps the mapping alive."""
    if not prod(shape):
        return torch.empty(*shape, dtype=DTYPES[dtype])
    return torch.frombuffer(mapping, dtype=DTYPES[dtype], count=prod(shape), offset=offset).view(*shape)
