"""Loading models and tokenizers from Hugging Face checkpoint folders, and preparing them for training and scoring."""

import sys
import threading
from pathlib import Path
from typing import Any, Literal

import torch
from blake3 import blake3
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf.errors import ConfigError
from rlhf.models.packing import pack_if_possible

DtypeName = Literal["bfloat16", "float32"]
"""Element types in which models are loaded."""

TORCH_DTYPES: dict[DtypeName, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}

_ONE_AT_A_TIME = threading.Lock()
"""Held while loading: transformers sets torch's default element type for all threads meanwhile."""


def load_policy(
    path: str | Path, *, dtype: DtypeName, device: str = "cpu", field: str = "model.path"
) -> PreTrainedModel:
    """Returns the causal language model in a folder, in eval mode, with dropout 0, using packed rows if it can.

    Args:
        path: folder of a Hugging Face checkpoint.
        dtype: element type of the weights.
        device: where the model is put.
        field: the dotted path of the setting that named the folder, for errors.
    Raises: ConfigError naming `field` if there is no such folder, no causal language model in it, or one that changes
        its logits after the output projection (soft-capping, scaling), whose log-probabilities would be wrong.
    """
    model = load_pretrained(AutoModelForCausalLM, path, dtype=dtype, device=device, field=field)
    _require_language_model(model, path, field)
    _require_plain_output_projection(model, path, field)
    return model


def load_pretrained(
    auto_class: Any,
    path: str | Path,
    *,
    dtype: DtypeName,
    device: str = "cpu",
    field: str = "model.path",
    **config_overrides: Any,
) -> PreTrainedModel:
    """Returns the model that a transformers auto class loads from a folder, prepared for training and scoring.

    Only safetensors are read: a pickle can run code.

    Args:
        auto_class: such as AutoModelForCausalLM.
        path, dtype, device, field: as in load_policy.
        config_overrides: values that replace those of config.json.
    Raises: ConfigError naming `field` if the folder holds no such model, only a part of its weights, or only pickles.
    """
    folder = require_model_folder(path, field)
    _require_safetensors(folder, field)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **config_overrides)
        _switch_dropout_off(config)
        with _ONE_AT_A_TIME:
            model, report = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=TORCH_DTYPES[dtype],
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{field} is '{path}': transformers cannot load it: {error}") from error
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(
            f"{field} is '{path}': its weights lack {names}; "
            f"a {type(model).__name__} is needed, trained and saved whole"
        )
    _let_every_embedding_learn(model)
    model = model.to(device).eval()
    pack_if_possible(model)
    return model


def load_tokenizer(path: str | Path, field: str = "model.path") -> PreTrainedTokenizerBase:
    """Returns the tokenizer in a model's folder. Raises: ConfigError naming `field` if there is none."""
    folder = require_model_folder(path, field)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field} is '{path}': no tokenizer can be read from it: {error}") from error


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the hex BLAKE3 of a tokenizer's vocabulary and of the ids that begin and end a text.

    Two tokenizers with the same digest give token ids the same meaning. The padding id is left out: padding is not sent
    between services, and a reward model's may have to differ from its policy's (see ScalarModel.save).
    """
    lines = [f"{token!r} {index}\n" for token, index in sorted(tokenizer.get_vocab().items())]
    lines.append(f"bos {tokenizer.bos_token_id} eos {tokenizer.eos_token_id}\n")
    return blake3("".join(lines).encode()).hexdigest()


def stop_ids_of(model_or_config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids that end a completion, ascending: those of the model, its generation config and the tokenizer.

    Args:
        model_or_config: a PreTrainedModel, its config or its GenerationConfig.
        tokenizer: the model's.
    """
    sources = (
        getattr(model_or_config, "generation_config", None),
        getattr(model_or_config, "config", model_or_config),
        tokenizer,
    )
    stop_ids: set[int] = set()
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        stop_ids.update([ids] if isinstance(ids, int) else ids or [])
    return sorted(stop_ids)


def require_model_folder(path: str | Path, field: str = "model.path") -> Path:
    """Returns the path of a folder that holds a model's config.json.

    Raises: ConfigError naming `field`, the dotted path of the setting, if it does not.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{field} is '{path}': no such directory; give the folder of a Hugging Face checkpoint")
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{field} is '{path}': no config.json in it; give a folder that transformers' save_pretrained wrote"
        )
    return folder


def max_positions(path: Path) -> int:
    """Returns the tokens that the model in a folder has positions for; sys.maxsize if its config sets no limit."""
    config = AutoConfig.from_pretrained(path, local_files_only=True).get_text_config()
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return sys.maxsize if positions is None else positions


def resolve_device(name: str, field: str) -> torch.device:
    """Returns the device that a configuration names. "auto" is CUDA if torch sees a CUDA device, else the CPU.

    Raises: ConfigError naming `field`, the dotted path of the setting, if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{field} is '{name}': {reason}; use 'auto', 'cpu' or a device that exists") from None
    num_devices = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_devices:
        raise ConfigError(f"{field} is '{name}', but torch sees {num_devices} CUDA devices; use --{field} auto")
    return device


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Makes the decoder layers of a model recompute their activations in the backward pass, to save memory.

    Results and gradients stay the same; a training step takes about a third longer. It works in eval mode, in which
    models are trained here (dropout is 0), until `train` or `eval` is called on the model again.

    Args:
        model: a transformers model, or a PolicyModel or ScalarModel around one.
    Raises: ConfigError if the architecture does not support it.
    """
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    layers = [module for module in inner.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not inner.supports_gradient_checkpointing:
        raise ConfigError(f"{type(inner).__name__} cannot recompute its layers; switch activation checkpointing off")
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        # Only the layer checks whether it is in training; its submodules stay in eval mode.
        layer.training = True


def _require_safetensors(folder: Path, field: str) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise ConfigError(
            f"{field} is '{folder}': its weights are pickles ({', '.join(pickles[:3])}), which can run code when they "
            "are read; convert them where you trust them: "
            "AutoModelForSequenceClassification (or AutoModelForCausalLM).from_pretrained(FOLDER).save_pretrained(NEW)"
        )


def _switch_dropout_off(config: Any) -> None:
    """Sets every dropout rate to 0, so that a model's log-probabilities do not differ from call to call."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def _let_every_embedding_learn(model: nn.Module) -> None:
    """Lets the padding id's embedding have a gradient: it may be the end-of-sequence id, which real text contains.

    Padding is never part of a loss, so it adds nothing to that gradient.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


def _require_language_model(model: PreTrainedModel, path: str | Path, field: str) -> None:
    """Refuses a reward model: its weights are enough to load a language model with tied embeddings by mistake."""
    for architecture in model.config.architectures or []:
        if architecture.endswith("ForSequenceClassification"):
            raise ConfigError(
                f"{field} is '{path}': it holds a {architecture}, a reward model; give a causal language model"
            )


@torch.no_grad()
def _require_plain_output_projection(model: PreTrainedModel, path: str | Path, field: str) -> None:
    probe = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    hidden = model.base_model(input_ids=probe, use_cache=False).last_hidden_state
    logits = model(input_ids=probe, use_cache=False).logits
    projected = hidden @ model.get_output_embeddings().weight.T
    if not torch.allclose(logits.float(), projected.float(), rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ConfigError(
            f"{field} is '{path}': {type(model).__name__} changes its logits after the output projection, which is "
            "not supported; use a model without logit soft-capping, scaling or bias"
        )
