"""Rewards from trained reward models, transformers sequence classifiers with one label: from one, or an ensemble."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import assert_never

import torch
from blake3 import blake3

from rlhf.errors import ConfigError
from rlhf.models import attention
from rlhf.models.loading import DtypeName, resolve_device
from rlhf.models.scalar_model import ScalarModel, sequence_scores
from rlhf.models.sequences import pad_whole
from rlhf.models.weights import tensor_bytes
from rlhf.rollout import fault_of_ids
from rlhf.weights import tensor_digest
from services.reward.scorers.scorer import (
    Conversation,
    ErrorCode,
    Item,
    RawPair,
    Score,
    ScoreError,
    ScorerInfo,
    TextPair,
    TokenPair,
    TokenSequence,
)
from services.reward.scorers.text import PairTokenizer

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


def load_model_scorer(path: str, dtype: DtypeName, device_name: str, field: str = "scorer.path") -> ModelScorer:
    """Returns the scorer of a checkpoint.

    Args:
        path: its folder.
        dtype: of the weights.
        device_name: "auto", "cpu", "cuda" or "cuda:N".
        field: where the path is configured, for errors.
    Raises: ConfigError if the directory holds no reward model.
    """
    device = resolve_device(device_name, "scorer.device")
    tokenizer = PairTokenizer(path, field)
    model = ScalarModel.load(path, dtype=dtype, field=field)
    backbone = model.backbone.config.get_text_config()
    info = ScorerInfo(
        name=path,
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


Rule = Callable[[Sequence[float], float], float]

COMBINE_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "mean": lambda rewards, std_coef: statistics.fmean(rewards),
        "worst": lambda rewards, std_coef: min(rewards),
        "mean_minus_std": lambda rewards, std_coef: statistics.fmean(rewards) - std_coef * statistics.pstdev(rewards),
    }
)
"""How the members' finite rewards of one completion, and std_coef, make one reward."""


class EnsembleScorer:
    """A Scorer over model scorers that read the same token ids."""

    def __init__(self, members: Sequence[ModelScorer], combine: str, std_coef: float) -> None:
        """Prepares the scorer.

        Args:
            members: at least one; combine: a key of COMBINE_RULES; std_coef: at least 0.
        Raises: ConfigError if a member has another tokenizer or chat template than the first, or the weights of one.
        """
        _require_fit(members)
        self._members = members
        self._rule = COMBINE_RULES[combine]
        self._std_coef = std_coef
        infos = [member.info for member in members]
        rule = f"{combine}({std_coef:g})" if combine == "mean_minus_std" else combine
        versions = "+".join(info.version for info in infos)
        self.info = ScorerInfo(
            name=f"{rule} of {', '.join(info.name for info in infos)}",
            version=f"{rule}:{versions}",
            tokenizer_digest=infos[0].tokenizer_digest,
            max_sequence_tokens=min(
                (info.max_sequence_tokens for info in infos if info.max_sequence_tokens), default=0
            ),
            # Each member has a scale of its own; a difference of combined rewards is taken on the mean of them.
            logit_scale=statistics.fmean(info.logit_scale for info in infos),
            pads=any(info.pads for info in infos),
        )

    def prepare(self, item: Item) -> Ids | ScoreError:
        """Returns the item as the ids of one sequence that every member takes."""
        prepared = self._members[0].prepare(item)
        for member in self._members[1:]:
            if isinstance(prepared, ScoreError):
                break
            prepared = member.checked(prepared, "the item's ids")
        return prepared

    def size_of(self, prepared: Ids) -> int:
        """Returns the length of the sequence."""
        return len(prepared)

    def score(self, batch: list[Ids]) -> list[Score | ScoreError]:
        """Returns the combined reward of each sequence and the members' spread; one forward pass a member."""
        columns = [member.score(batch) for member in self._members]
        return [self._combine(rewards) for rewards in zip(*columns, strict=True)]

    def close(self) -> None:
        """Frees the members' memory."""
        for member in self._members:
            member.close()

    def _combine(self, rewards: Sequence[float]) -> Score | ScoreError:
        for member, reward in zip(self._members, rewards, strict=True):
            # Checked before combining: the lowest of NaN and a number depends on their order.
            if not math.isfinite(reward):
                return ScoreError(
                    ErrorCode.NOT_FINITE,
                    f"member {member.info.name} answered {reward}; check its weights for NaN, leave it out of "
                    "scorer.paths, or serve with scorer.dtype float32",
                )
        return Score(self._rule(rewards, self._std_coef), statistics.pstdev(rewards))


def _require_fit(members: Sequence[ModelScorer]) -> None:
    first = members[0]
    versions: dict[str, str] = {}
    for member in members:
        info = member.info
        if member.tokenizing_digest != first.tokenizing_digest:
            raise ConfigError(
                f"scorer.paths has '{info.name}', whose tokenizer or chat template is not that of "
                f"'{first.info.name}'; an ensemble needs members that were trained from one base model"
            )
        if info.version in versions:
            raise ConfigError(
                f"scorer.paths has '{versions[info.version]}' and '{info.name}', which are the same model; members "
                "that do not differ cannot disagree: name different ones"
            )
        versions[info.version] = info.name
