"""Log-probabilities of completions under a frozen causal language model."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rlhf.models.attention import NAME
from rlhf.models.loading import load_policy, load_tokenizer, resolve_device, tokenizer_digest
from rlhf.models.policy_model import completion_logprobs
from rlhf.models.sequences import pad_sequences
from rlhf.models.weights import model_manifest
from services.reference.config import ModelConfig
from services.reference.core import LogprobsItem, ReferenceInfo


@dataclass(frozen=True, slots=True)
class TransformersScorer:
    """A LogprobsScorer of reference/core.py over a transformers model."""

    info: ReferenceInfo
    model: PreTrainedModel

    def compute(self, batch: list[LogprobsItem], temperature: float) -> list[list[float]]:
        """Returns each completion's log-probabilities [T_i] in nats, from one forward pass."""
        sequences = pad_sequences([item.prompt_ids for item in batch], [item.completion_ids for item in batch])
        with torch.inference_mode():
            logprobs = completion_logprobs(self.model, sequences.to(self.model.device), temperature)
        rows = logprobs.float().cpu().tolist()
        return [row[: len(item.completion_ids)] for row, item in zip(rows, batch, strict=True)]


def load_logprobs_scorer(config: ModelConfig) -> TransformersScorer:
    """Returns the scorer of a checkpoint. Raises: ConfigError if the directory holds no causal language model."""
    device = resolve_device(config.device, "model.device")
    digest = tokenizer_digest(load_tokenizer(config.path))
    model = load_policy(config.path, dtype=config.dtype, device=str(device))
    info = ReferenceInfo(
        name=config.path,
        version=model_manifest(model).digest,
        tokenizer_digest=digest,
        max_sequence_tokens=model.config.max_position_embeddings,
        vocab_size=model.config.vocab_size,
        pads=model.config._attn_implementation != NAME,
    )
    return TransformersScorer(info, model)
