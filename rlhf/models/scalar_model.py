"""A transformer with one scalar output per position, and the scores and values it gives: reward models and critics."""

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.algorithms.logprobs import predictor_positions
from rlhf.errors import ConfigError
from rlhf.models.loading import DtypeName, load_pretrained
from rlhf.models.packing import hidden_at, linear_in_float32
from rlhf.models.sequences import PaddedSequences, scatter_to_mask


class ScalarModel(nn.Module):
    """A backbone, a linear head of one output, and a stored normalisation of its scores.

    On disk it is a transformers sequence-classification checkpoint. AutoModelForSequenceClassification loads it too,
    with the same scores before normalisation.
    """

    backbone: PreTrainedModel
    head: nn.Linear

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.set_normalization(mean, std)

    def forward(self, sequences: PaddedSequences, rows: Tensor, positions: Tensor) -> Tensor:
        """Returns (score - mean) / std in float32, [N], carrying gradient where it is enabled.

        Args:
            sequences: on the model's device.
            rows, positions: [N] int64, the tokens at which scores are read. The head sees no others, so padding affects
                neither the result nor the head's gradient.
        """
        scores = linear_in_float32(self.head, hidden_at(self.backbone, sequences, rows, positions))
        return (scores - self.mean) / self.std

    def set_normalization(self, mean: float, std: float) -> None:
        """Normalises scores of this mean and standard deviation to mean 0, std 1. Raises: ValueError if std <= 0."""
        if not std > 0:
            raise ValueError(f"std is {std}; scores can only be normalised by a standard deviation above 0")
        self.mean, self.std = mean, std

    @classmethod
    def from_policy(cls, path: str | Path, dtype: DtypeName, seed: int) -> Self:
        """Returns a policy's backbone with a new head: weights from N(0, 1 / (d + 1)), d the hidden size, no bias.

        Source: Stiennon et al. 2020, arXiv:2009.01325, appendix B.1.
        Raises: ConfigError if the folder holds no language model.
        """
        backbone = load_pretrained(AutoModel, path, dtype=dtype)
        hidden_size = backbone.config.get_text_config().hidden_size
        head = nn.Linear(hidden_size, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        # 1 / (d + 1) is the variance; normal_ takes a standard deviation.
        nn.init.normal_(head.weight, std=(hidden_size + 1) ** -0.5, generator=generator)
        return cls(backbone, head.to(backbone.dtype)).eval()

    @classmethod
    def load(cls, path: str | Path, dtype: DtypeName, field: str = "model.path") -> Self:
        """Returns the model that `save` wrote. Raises: ConfigError naming `field` if the folder holds no such model."""
        classifier = load_pretrained(AutoModelForSequenceClassification, path, dtype=dtype, field=field)
        if classifier.config.num_labels != 1:
            raise ConfigError(
                f"{field} is '{path}': its head has {classifier.config.num_labels} labels; a reward model has 1"
            )
        mean = getattr(classifier.config, "rlhf_reward_mean", 0.0)
        std = getattr(classifier.config, "rlhf_reward_std", 1.0)
        return cls(classifier.base_model, _score_head(classifier), mean=mean, std=std).eval()

    def save(self, path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes the model and its tokenizer as a sequence-classification checkpoint.

        transformers reads the score at the last token that is not the padding id. Many tokenizers pad with the
        end-of-sequence id; a finished completion would then be scored one token too early. The saved config and
        tokenizer therefore pad with another id.

        Raises: ConfigError if the architecture has no such checkpoint, or the tokenizer no id to pad with.
        """
        config = copy.deepcopy(self.backbone.config)
        config.num_labels = 1
        config.rlhf_reward_mean, config.rlhf_reward_std = self.mean, self.std
        padded_tokenizer = copy.deepcopy(tokenizer)
        padded_tokenizer.pad_token = padding_token(tokenizer)
        config.pad_token_id = padded_tokenizer.pad_token_id
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
        _score_head(classifier)
        # The classifier is built without memory and takes the modules as they are; its class writes the checkpoint.
        setattr(classifier, classifier.base_model_prefix, self.backbone)
        classifier.score = self.head
        classifier.save_pretrained(path)
        padded_tokenizer.save_pretrained(path)


def completion_values(scalar_model: ScalarModel, sequences: PaddedSequences) -> Tensor:
    """Returns the value of the state before each completion token, [B, T] float32, 0.0 at padding. Carries gradient."""
    mask = sequences.completion_mask
    rows, tokens = mask.nonzero(as_tuple=True)
    positions = predictor_positions(sequences.prompt_lengths, mask.shape[1])[rows, tokens]
    return scatter_to_mask(scalar_model(sequences, rows, positions), mask)


def sequence_scores(scalar_model: ScalarModel, sequences: PaddedSequences) -> Tensor:
    """Returns the score of each sequence, read at its last real token: [B] float32. Carries gradient."""
    last = sequences.lengths - 1
    scores: Tensor = scalar_model(sequences, torch.arange(len(last), device=last.device), last)
    return scores


def padding_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a token of the vocabulary for padding that never ends a completion.

    It is the tokenizer's padding token if that differs from end-of-sequence, else a special token, preferably one that
    the chat template does not use.

    Raises: ConfigError if there is none.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token not in (None, eos):
        return str(tokenizer.pad_token)
    template = str(tokenizer.chat_template or "")
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    named = (tokenizer.bos_token, tokenizer.unk_token)
    free = [token for token in special if token not in (eos, *named) and token not in template]
    for candidate in (*(token for token in free if "pad" in token.lower()), *free, *named[::-1]):
        if candidate not in (None, eos):
            return str(candidate)
    raise ConfigError(
        "the tokenizer has no special token to pad with besides its end-of-sequence token; add a pad token"
    )


def _score_head(classifier: Any) -> nn.Linear:
    head = getattr(classifier, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ConfigError(
            f"{type(classifier).__name__} has no bias-free head named 'score'; "
            "reward models and critics need a decoder-only architecture"
        )
    return head
