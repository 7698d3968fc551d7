"""A causal language model with an optional value head, as one module from token ids to log-probabilities and values.

All parameters are read inside `PolicyModel.forward`, so that FSDP can use the module as its root.
"""

from typing import Any, TypeAlias

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.algorithms.logprobs import (
    predictor_positions,
    token_logprobs_and_entropy_from_hidden,
    token_logprobs_from_hidden,
)
from rlhf.models.packing import hidden_at, linear_in_float32
from rlhf.models.sequences import PaddedSequences, scatter_to_mask


class PolicyModel(nn.Module):
    """A language model from load_policy, with an optional linear head of one output on its last hidden states.

    The head is for runs in which policy and critic share a backbone. Parameters are named `model.<name in the model>`
    and `value_head.weight`.
    """

    model: PreTrainedModel
    value_head: nn.Linear | None

    def __init__(self, model: PreTrainedModel, value_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.model = model
        self.value_head = value_head

    def forward(
        self, sequences: PaddedSequences, temperature: float, *, with_entropy: bool = False, with_values: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns (logprobs, entropies, values) of the completion tokens, [B, T] float32 each, 0.0 at padding.

        All three carry gradient where it is enabled. The value at a token is that of the state before it.

        Args:
            sequences: on the device of the model.
            temperature: divides the logits; above 0.
            with_entropy, with_values: without them entropies or values are None.
        Raises: ValueError if values are asked for and the model has no value head.
        """
        return score_tokens(
            self.model,
            sequences,
            temperature,
            with_entropy=with_entropy,
            value_head=self._require_value_head() if with_values else None,
        )

    def _require_value_head(self) -> nn.Linear:
        if self.value_head is None:
            raise ValueError("this PolicyModel has no value_head; give it one, or take values from a ScalarModel")
        return self.value_head


LanguageModel: TypeAlias = PreTrainedModel | PolicyModel
"""A causal language model from load_policy, or the module that wraps one for training."""


def completion_logprobs(model: LanguageModel, sequences: PaddedSequences, temperature: float) -> Tensor:
    """Returns the log-probability of every completion token, [B, T] float32 nats, 0.0 at padding.

    Carries gradient where it is enabled.

    Args:
        model: on the device of the sequences.
        sequences: prompts and completions.
        temperature: divides the logits; above 0.
    """
    if isinstance(model, PolicyModel):
        logprobs: Tensor = model(sequences, temperature)[0]
        return logprobs
    return score_tokens(model, sequences, temperature)[0]


def score_tokens(
    model: PreTrainedModel,
    sequences: PaddedSequences,
    temperature: float,
    *,
    with_entropy: bool = False,
    value_head: nn.Linear | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the result of PolicyModel.forward for a model and a value head; without a head values are None.

    The output projection runs only at completion tokens, one chunk at a time.
    """
    mask = sequences.completion_mask
    rows, tokens = mask.nonzero(as_tuple=True)
    positions = predictor_positions(sequences.prompt_lengths, mask.shape[1])[rows, tokens]
    hidden = hidden_at(model.base_model, sequences, rows, positions)
    arguments: tuple[Any, ...] = (
        hidden,
        model.get_output_embeddings().weight,
        sequences.input_ids[rows, positions + 1],
        temperature,
    )
    entropies = None
    if with_entropy:
        logprobs, entropies = token_logprobs_and_entropy_from_hidden(*arguments)
    else:
        logprobs = token_logprobs_from_hidden(*arguments)
    values = None if value_head is None else linear_in_float32(value_head, hidden)
    return (
        scatter_to_mask(logprobs, mask),
        None if entropies is None else scatter_to_mask(entropies, mask),
        None if values is None else scatter_to_mask(values, mask),
    )
