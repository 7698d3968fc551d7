"""Rewards from a trained reward model: a transformers sequence classifier with one label."""

from typing import assert_never

import torch
from blake3 import blake3

from rlhf.models import attention
from rlhf.models.devices import resolve_device
from rlhf.models.scalar_model import ScalarModel
from rlhf.models.sequences import pad_whole
from rlhf.models.token_scores import sequence_scores
from rlhf.models.weights import tensor_bytes
from rlhf.serving.token_checks import fault_of_ids
from rlhf.weights import tensor_digest
from services.reward.scorers.scorer import (
    Conversation,
    ErrorCode,
    Item,
    RawPair,
    ScoreError,
    ScorerInfo,
    TextPair,
    TokenPair,
    TokenSequence,
)
from services.reward.scorers.scorer_config import PartConfig
from services.reward.scorers.tokenizing import PairTokenizer

Ids = list[int]
"""Prompt and completion as the ids of one sequence."""


class ModelScorer:
    """A Scorer that reads the reward at the last token of prompt and completion."""

    def __init__(self, model: ScalarModel, tokenizer: PairTokenizer, info: ScorerInfo, vocab_size: int) -> None:
        """Args: the model, on its device; the tokenizer of its checkpoint; its limits; how many ids it knows."""
        self.info = info
        self._model: ScalarModel | None = model
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._device = next(model.parameters()).device

    @property
    def tokenizing_digest(self) -> str:
        """Digest of all that decides which ids a text becomes: tokenizer and chat template."""
        return f"{self._tokenizer.digest} {self._tokenizer.template_digest}"

    def prepare(self, item: Item) -> Ids | ScoreError:
        """Returns the item as the ids of one sequence."""
        match item:
            case TextPair() | Conversation() | RawPair():
                ids = self._tokenizer.encode(item, self.info.max_sequence_tokens)
                return ids if isinstance(ids, ScoreError) else self.checked(ids, "the text's ids")
            case TokenPair():
                for field in ("prompt_ids", "completion_ids"):
                    fault = fault_of_ids(f"tokens.{field}", getattr(item, field), self._vocab_size)
                    if fault is not None:
                        return ScoreError(ErrorCode.INVALID_ITEM, fault)
                return self._if_not_too_long([*item.prompt_ids, *item.completion_ids])
            case TokenSequence():
                if len(item.ids) < 2:
                    return ScoreError(
                        ErrorCode.INVALID_ITEM,
                        f"sequence.ids has {len(item.ids)} entries; send prompt and completion, at least two ids",
                    )
                return self.checked(item.ids, "sequence.ids")
        assert_never(item)

    def checked(self, ids: Ids, field: str) -> Ids | ScoreError:
        """Returns the ids if the model knows them all and takes so many. Args: field: where they come from."""
        fault = fault_of_ids(field, ids, self._vocab_size)
        if fault is not None:
            return ScoreError(ErrorCode.INVALID_ITEM, fault)
        return self._if_not_too_long(ids)

    def _if_not_too_long(self, ids: Ids) -> Ids | ScoreError:
        limit = self.info.max_sequence_tokens
        if limit and len(ids) > limit:
            return ScoreError(
                ErrorCode.TOO_LONG,
                f"prompt and completion have {len(ids)} tokens, the model takes at most {limit}; send a shorter pair "
                "(nothing is cut silently)",
            )
        return ids

    def size_of(self, prepared: Ids) -> int:
        """Returns the length of the sequence."""
        return len(prepared)

    def score(self, batch: list[Ids]) -> list[float]:
        """Returns the model's normalised reward of each sequence, from one forward pass."""
        assert self._model is not None, "scored after close()"
        with torch.inference_mode():
            scores = sequence_scores(self._model, pad_whole(batch).to(self._device))
        rewards: list[float] = scores.float().tolist()
        return rewards

    def close(self) -> None:
        """Frees the model's memory."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def load_model_scorer(config: PartConfig, field: str = "scorer.path") -> ModelScorer:
    """Returns the scorer of a checkpoint. Raises: ConfigError naming `field` if the directory holds no reward model."""
    device = resolve_device(config.device, "scorer.device")
    tokenizer = PairTokenizer(config.path, field)
    model = ScalarModel.load(config.path, dtype=config.dtype, field=field)
    backbone = model.backbone.config.get_text_config()
    info = ScorerInfo(
        name=config.path,
        version=_version(model, tokenizer),
        tokenizer_digest=tokenizer.digest,
        # Some architectures know no limit.
        max_sequence_tokens=getattr(backbone, "max_position_embeddings", 0),
        # Rewards are logits less their mean over their standard deviation.
        logit_scale=model.std,
        pads=model.backbone.config._attn_implementation != attention.NAME,
    )
    return ModelScorer(model.to(device).eval(), tokenizer, info, backbone.vocab_size)


def _version(model: ScalarModel, tokenizer: PairTokenizer) -> str:
    """Digest of all that the scores depend on: weights and their type, normalisation, tokenizer, chat template."""
    settings = (model.mean, model.std, tokenizer.digest, tokenizer.template_digest)
    weights = [
        (name, str(tensor.dtype), tuple(tensor.shape), tensor_digest(tensor_bytes(tensor.cpu().contiguous())))
        for name, tensor in sorted(model.state_dict().items())
    ]
    return blake3(repr((settings, weights)).encode()).hexdigest()[:16]
