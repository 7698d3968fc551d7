"""A tiny random language model and reward model that load, train and serve like real ones and are made in a moment."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.models.loading import load_tokenizer
from rlhf.models.scalar_model import ScalarModel

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
PAD_ID, EOS_ID, USER_ID, ASSISTANT_ID = range(4)
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
MAX_SEQUENCE_TOKENS = 512

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after the four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_SEQUENCE_TOKENS,
    )


def make_tiny_model(path: Path, seed: int = 0, *, tie_word_embeddings: bool = True) -> Path:
    """Writes a 2-layer Llama of hidden size 64 in float32, with its tokenizer, and returns the folder.

    The weights are wide enough that its distributions are far from uniform; equal seeds give equal weights.
    """
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MAX_SEQUENCE_TOKENS,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=0.15,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    make_tiny_tokenizer().save_pretrained(path)
    return path


def make_tiny_reward_model(path: Path, seed: int = 0) -> Path:
    """Writes a reward model with a random head on the backbone of make_tiny_model(seed), and returns the folder."""
    with TemporaryDirectory() as folder:
        policy_path = make_tiny_model(Path(folder), seed)
        ScalarModel.from_policy(policy_path, "float32", seed).save(path, load_tokenizer(policy_path))
    return path
