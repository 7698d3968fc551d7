"""What an engine needs to know of a checkpoint before it is loaded."""

from transformers import AutoConfig, GenerationConfig

from rlhf.errors import ConfigError
from rlhf.models.loading import TORCH_DTYPES, load_tokenizer, max_positions, stop_ids_of, tokenizer_digest
from rlhf.models.weights import DTYPE_NAMES, read_checkpoint, tensor_bytes, tensor_info
from rlhf.weights import WeightsManifest
from services.policy.config import ModelConfig
from services.policy.engine import EngineInfo
from services.policy.weights.memory_file import WeightsFile

DEFAULT_MAX_SEQUENCE_TOKENS = 2048


def read_engine_info(config: ModelConfig, *, keep_copy: bool) -> EngineInfo:
    """Returns what a checkpoint offers; reads and hashes all of its weights.

    Args:
        config: where it lies, and as what it is served.
        keep_copy: whether to keep the weights in memory, for patches to apply to (limits.takes_patches).
    Raises: ConfigError if there is no model, or one that takes fewer tokens than max_sequence_tokens.
    """
    num_tokens = max_sequence_tokens(config)
    tokenizer = load_tokenizer(config.path)
    model_config = AutoConfig.from_pretrained(config.path, local_files_only=True)
    stop_ids = set(stop_ids_of(model_config, tokenizer))
    if (config.path / "generation_config.json").is_file():  # chat models often name more of them there
        stop_ids.update(stop_ids_of(GenerationConfig.from_pretrained(config.path), tokenizer))
    manifest, copy = _read_weights(config, keep_copy=keep_copy)
    return EngineInfo(
        name=config.engine,
        tokenizer_digest=tokenizer_digest(tokenizer),
        vocab_size=model_config.vocab_size,
        max_sequence_tokens=num_tokens,
        stop_ids=tuple(sorted(stop_ids)),
        dtype=DTYPE_NAMES[TORCH_DTYPES[config.dtype]],
        manifest=manifest,
        copy=copy,
    )


def _read_weights(config: ModelConfig, *, keep_copy: bool) -> tuple[WeightsManifest, WeightsFile | None]:
    """Returns the manifest of the weights as they are served, and their copy."""
    copy = WeightsFile() if keep_copy else None
    infos = []
    for name, tensor in read_checkpoint(config.path, config.dtype):
        infos.append(tensor_info(name, tensor))
        if copy is not None:
            copy.add(infos[-1], tensor_bytes(tensor))
    return WeightsManifest(tuple(infos)), copy


def max_sequence_tokens(config: ModelConfig) -> int:
    """Returns how many tokens a sequence may have. Raises ConfigError if more are configured than the model takes."""
    positions = max_positions(config.path)
    if config.max_sequence_tokens is None:
        return min(positions, DEFAULT_MAX_SEQUENCE_TOKENS)
    if positions < config.max_sequence_tokens:
        raise ConfigError(
            f"model.max_sequence_tokens is {config.max_sequence_tokens}, the model at {config.path} takes {positions}; "
            "lower it"
        )
    return config.max_sequence_tokens
