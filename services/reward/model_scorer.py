"""Rewards from a trained reward model: a transformers sequence classifier with one label."""

import torch
from blake3 import blake3

from rlhf_services.common.token_checks import fault_of_ids
from rlhf_services.models.devices import resolve_device
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.models.sequences import pad_sequences
from rlhf_services.models.token_scores import sequence_scores
from rlhf_services.models.weights import checkpoint_manifest
from rlhf_services.reward.config import ScorerConfig
from rlhf_services.reward.scorer import ErrorCode, ScoreError, ScorerInfo, TextPair, TokenPair
from rlhf_services.reward.tokenizing import PairTokenizer


class ModelScorer:
    """A Scorer that reads the reward at the last token of prompt and completion."""

    def __init__(self, model: ScalarModel, tokenizer: PairTokenizer, info: ScorerInfo, vocab_size: int) -> None:
        """Args: the model, on its device; the tokenizer of its checkpoint; its limits; how many ids it knows."""
        self.info = info
        self._model = model
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._device = next(model.parameters()).device

    @property
    def tokenizing_digest(self) -> str:
        """Digest of all that decides which ids a text becomes: tokenizer and chat template."""
        return f"{self._tokenizer.digest} {self._tokenizer.template_digest}"

    def prepare(self, pair: TextPair | TokenPair) -> TokenPair | ScoreError:
        """Returns the pair as token ids."""
        tokens = self._tokenizer.encode(pair) if isinstance(pair, TextPair) else pair
        for field in ("prompt_ids", "completion_ids"):
            fault = fault_of_ids(f"tokens.{field}", getattr(tokens, field), self._vocab_size)
            if fault is not None:
                return ScoreError(ErrorCode.INVALID_ITEM, fault)
        if tokens.num_tokens > self.info.max_sequence_tokens:
            return ScoreError(
                ErrorCode.TOO_LONG,
                f"prompt and completion have {tokens.num_tokens} tokens, the model takes at most "
                f"{self.info.max_sequence_tokens}; send a shorter pair (nothing is cut silently)",
            )
        return tokens

    def size_of(self, prepared: TokenPair) -> int:
        """Returns the length of the sequence."""
        return prepared.num_tokens

    def score(self, batch: list[TokenPair]) -> list[float]:
        """Returns the model's normalised reward of each pair, from one forward pass."""
        sequences = pad_sequences([pair.prompt_ids for pair in batch], [pair.completion_ids for pair in batch])
        with torch.inference_mode():
            scores = sequence_scores(self._model, sequences.to(self._device))
        return [float(score) for score in scores.float().cpu()]


def load_model_scorer(config: ScorerConfig) -> ModelScorer:
    """Returns the scorer of a checkpoint. Raises: ConfigError if the directory holds no reward model."""
    device = resolve_device(config.device, "scorer.device")
    tokenizer = PairTokenizer(config.path)
    model = ScalarModel.load(config.path, dtype=config.dtype).to(device).eval()
    backbone = model.backbone.config
    info = ScorerInfo(
        name=config.path,
        version=_version(config, model, tokenizer),
        tokenizer_digest=tokenizer.digest,
        max_sequence_tokens=backbone.max_position_embeddings,
    )
    return ModelScorer(model, tokenizer, info, backbone.vocab_size)


def _version(config: ScorerConfig, model: ScalarModel, tokenizer: PairTokenizer) -> str:
    """Digest of all that the scores depend on: weights and their type, normalisation, tokenizer, chat template."""
    manifest = checkpoint_manifest(config.path, config.dtype)
    parts = (manifest.digest, model.mean, model.std, tokenizer.digest, tokenizer.template_digest)
    return blake3(repr(parts).encode()).hexdigest()[:16]
