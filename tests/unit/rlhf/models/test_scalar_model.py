"""Reward models and critics: initialisation, normalisation, and the checkpoint that transformers reads alike."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from rlhf.errors import ConfigError
from rlhf.models.loading import load_tokenizer, tokenizer_digest
from rlhf.models.scalar_model import ScalarModel, padding_token, sequence_scores
from rlhf.models.sequences import pad_sequences
from tests.support.tiny_model import EOS_ID, PAD_ID, make_tiny_model, make_tiny_tokenizer

# The first completion ends in end-of-sequence, the second does not; both rows are padded beside the third.
PROMPTS = [[5, 6, 7], [8], [9, 10, 11]]
COMPLETIONS = [[20, EOS_ID], [22, 23], [24, 25, 26, 27, EOS_ID]]


def scores_in_transformers(path: Path) -> torch.Tensor:
    """What a transformers user gets who tokenizes with the checkpoint's own tokenizer and pads with it."""
    tokenizer = load_tokenizer(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    rows = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.squeeze(-1)


def our_scores(model: ScalarModel) -> torch.Tensor:
    with torch.no_grad():
        return sequence_scores(model, pad_sequences(PROMPTS, COMPLETIONS))


def test_transformers_gives_the_same_scores(tiny_reward_path: Path):
    model = ScalarModel.load(tiny_reward_path, "float32")
    torch.testing.assert_close(our_scores(model), scores_in_transformers(tiny_reward_path))


def test_transformers_gives_the_same_scores_where_the_policy_pads_with_end_of_sequence(tmp_path: Path):
    tokenizer = make_tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = ScalarModel.from_policy(make_tiny_model(tmp_path / "policy"), "float32", seed=0)
    model.backbone.config.pad_token_id = EOS_ID
    model.save(tmp_path / "reward", tokenizer)
    assert AutoConfig.from_pretrained(tmp_path / "reward").pad_token_id == PAD_ID
    torch.testing.assert_close(our_scores(model), scores_in_transformers(tmp_path / "reward"))
    assert tokenizer.pad_token_id == EOS_ID  # the caller's tokenizer is left alone
    assert tokenizer_digest(load_tokenizer(tmp_path / "reward")) == tokenizer_digest(tokenizer)


def test_saving_and_loading_gives_the_same_model_and_normalisation(tmp_path: Path, tiny_reward_path: Path):
    model = ScalarModel.load(tiny_reward_path, "float32")
    raw = our_scores(model)
    model.set_normalization(mean=0.25, std=2.0)
    model.save(tmp_path, load_tokenizer(tiny_reward_path))
    loaded = ScalarModel.load(tmp_path, "float32")
    assert (loaded.mean, loaded.std) == (0.25, 2.0)
    torch.testing.assert_close(our_scores(loaded), (raw - 0.25) / 2.0)
    # transformers knows nothing of the normalisation.
    torch.testing.assert_close(scores_in_transformers(tmp_path), raw)


def test_saving_leaves_the_model_as_it_was(tmp_path: Path, tiny_reward_path: Path):
    model = ScalarModel.load(tiny_reward_path, "float32")
    before = (our_scores(model), [name for name, _ in model.named_parameters()], model.backbone.config.to_dict())
    model.save(tmp_path, load_tokenizer(tiny_reward_path))
    after = (our_scores(model), [name for name, _ in model.named_parameters()], model.backbone.config.to_dict())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_bfloat16_weights_give_float32_scores(tiny_reward_path: Path):
    model = ScalarModel.load(tiny_reward_path, "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    scores = our_scores(model)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, our_scores(ScalarModel.load(tiny_reward_path, "float32")), rtol=0.1, atol=0.1)


def test_the_head_has_variance_one_over_hidden_size_plus_one(tiny_model_path: Path):
    # 20 heads of 64 weights: the standard error of the variance of 1280 draws is sqrt(2 / 1280) = 4 %; 4 of them.
    weights = torch.stack([ScalarModel.from_policy(tiny_model_path, "float32", seed).head.weight for seed in range(20)])
    assert weights.var().item() == pytest.approx(1 / 65, rel=0.16)
    assert weights.mean().abs().item() < 4 * (1 / 65 / weights.numel()) ** 0.5


def test_equal_seeds_give_equal_heads_and_others_do_not(tiny_model_path: Path):
    first, same, other = (ScalarModel.from_policy(tiny_model_path, "float32", seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_backbone_is_the_policys(tiny_model_path: Path, tiny_reward_path: Path):
    fresh = ScalarModel.from_policy(tiny_model_path, "float32", seed=0)
    torch.testing.assert_close(our_scores(fresh), our_scores(ScalarModel.load(tiny_reward_path, "float32")))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_standard_deviation_that_is_not_above_zero_is_refused(tiny_reward_path: Path, std: float):
    model = ScalarModel.load(tiny_reward_path, "float32")
    with pytest.raises(ValueError, match="std is"):
        model.set_normalization(0.0, std)


def test_a_policy_is_no_reward_model(tiny_model_path: Path):
    # transformers would load it and give it a random head.
    with pytest.raises(ConfigError, match=r"its weights lack score\.weight"):
        ScalarModel.load(tiny_model_path, "float32")


def test_a_classifier_of_two_labels_is_no_reward_model(tmp_path: Path):
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="its head has 2 labels; a reward model has 1"):
        ScalarModel.load(tmp_path, "float32")


def test_the_padding_token_is_never_the_end_nor_part_of_the_chat_template():
    tokenizer = make_tiny_tokenizer()
    assert padding_token(tokenizer) == "<|pad|>"
    tokenizer.pad_token = tokenizer.eos_token
    assert padding_token(tokenizer) == "<|pad|>"  # still in the vocabulary, and named like one
    tokenizer.pad_token = None
    assert padding_token(tokenizer) == "<|pad|>"


def test_a_tokenizer_with_nothing_to_pad_with_is_refused():
    tokenizer = make_tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.chat_template = "<|pad|> <|user|> <|assistant|>"
    with pytest.raises(ConfigError, match="no special token to pad with"):
        padding_token(tokenizer)
    tokenizer.unk_token = "<|user|>"
    assert padding_token(tokenizer) == "<|user|>"
