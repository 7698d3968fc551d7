"""The product's tiny random models, under the name that tests import them by."""

from rlhf_cli.models.tiny_model import (
    ASSISTANT_ID,
    EOS_ID,
    MAX_SEQUENCE_TOKENS,
    PAD_ID,
    USER_ID,
    VOCAB_SIZE,
    make_tiny_model,
    make_tiny_reward_model,
    make_tiny_tokenizer,
)

__all__ = [
    "ASSISTANT_ID",
    "EOS_ID",
    "MAX_SEQUENCE_TOKENS",
    "PAD_ID",
    "USER_ID",
    "VOCAB_SIZE",
    "make_tiny_model",
    "make_tiny_reward_model",
    "make_tiny_tokenizer",
]
