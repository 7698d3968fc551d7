"""The model scorer against a straightforward transformers forward pass."""

import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, MistralConfig, MistralForSequenceClassification

from rlhf.errors import ConfigError
from rlhf.models.loading import DtypeName, load_tokenizer
from rlhf.models.scalar_model import ScalarModel
from services.reward.scorers.config import ScorerConfig, build_scorer, scorer_config
from services.reward.scorers.model import ModelScorer, load_model_scorer
from services.reward.scorers.scorer import (
    ChatMessage,
    Conversation,
    ErrorCode,
    Item,
    RawPair,
    ScoreError,
    TextPair,
    TokenPair,
    TokenSequence,
)
from tests.support.tiny_model import (
    ASSISTANT_ID,
    EOS_ID,
    MAX_SEQUENCE_TOKENS,
    PAD_ID,
    USER_ID,
    VOCAB_SIZE,
    make_tiny_tokenizer,
)


def config_of(path: Path, dtype: DtypeName = "float32") -> ScorerConfig:
    return scorer_config(kind="model", path=str(path), dtype=dtype, device="cpu")


def load(path: Path, dtype: DtypeName = "float32") -> ModelScorer:
    return load_model_scorer(str(path), dtype, "cpu")


@pytest.fixture(scope="module")
def scorer(tiny_reward_path: Path) -> ModelScorer:
    return load(tiny_reward_path)


def rows_of_many_lengths() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (1, 2, 43, 72, 18)]


def oracle(path: Path, rows: list[list[int]], dtype: torch.dtype) -> list[float]:
    """One unpadded forward pass of transformers' own classifier for each sequence."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).eval()
    with torch.no_grad():
        return [float(model(torch.tensor([ids])).logits[0, 0]) for ids in rows]


def test_scores_in_float32_are_those_of_transformers(scorer: ModelScorer, tiny_reward_path: Path):
    rows = rows_of_many_lengths()
    assert scorer.score(rows) == pytest.approx(oracle(tiny_reward_path, rows, torch.float32), abs=1e-5)


def test_scores_in_bfloat16_are_near_those_of_float32(tiny_reward_path: Path):
    rows = rows_of_many_lengths()
    scores = load(tiny_reward_path, "bfloat16").score(rows)
    assert scores == pytest.approx(oracle(tiny_reward_path, rows, torch.float32), abs=0.15)


def test_text_becomes_the_chat_templates_ids_and_an_ended_completion(scorer: ModelScorer, tiny_reward_path: Path):
    encode = load_tokenizer(tiny_reward_path).encode
    prompt_ids = [USER_ID, *encode("hi"), EOS_ID, ASSISTANT_ID]
    assert scorer.prepare(TextPair("hi", "yes")) == [*prompt_ids, *encode("yes"), EOS_ID]


def test_every_form_of_the_same_item_is_the_same_sequence(scorer: ModelScorer):
    ids = scorer.prepare(TextPair("hi", "yes"))
    assert isinstance(ids, list)
    forms = [
        Conversation((ChatMessage("user", "hi"), ChatMessage("assistant", "yes"))),
        RawPair("<|user|>hi<|end|><|assistant|>", "yes<|end|>"),
        TokenPair(ids[:5], ids[5:]),
        TokenSequence(ids),
    ]
    assert [scorer.prepare(form) for form in forms] == [ids] * 4


@pytest.fixture(scope="module")
def windowed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose tokens see the eight before them: it takes padded batches alone."""
    folder = tmp_path_factory.mktemp("windowed")
    config = MistralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MAX_SEQUENCE_TOKENS,
        sliding_window=8,
        num_labels=1,
        pad_token_id=PAD_ID,
        initializer_range=0.15,
    )
    torch.manual_seed(0)
    MistralForSequenceClassification(config).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def test_whether_batches_are_padded_depends_on_the_model(scorer: ModelScorer, windowed_path: Path):
    assert (scorer.info.pads, load(windowed_path).info.pads) == (False, True)


@pytest.mark.parametrize("fixture", ["tiny_reward_path", "windowed_path"])
def test_no_score_depends_on_its_neighbours_packed_or_padded(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    scorer, rows = load(path), rows_of_many_lengths()
    alone = [scorer.score([row])[0] for row in rows]
    assert scorer.score(rows) == pytest.approx(alone, abs=1e-5)
    assert scorer.score(rows[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert alone == pytest.approx(oracle(path, rows, torch.float32), abs=1e-5)
    assert max(alone) - min(alone) > 0.01  # there is a difference to see


@pytest.mark.parametrize("fixture", ["tiny_reward_path", "windowed_path"])
def test_scores_are_the_same_while_another_model_loads(fixture: str, request: pytest.FixtureRequest):
    scorer, rows = load(request.getfixturevalue(fixture)), rows_of_many_lengths()
    usual = scorer.score(rows)
    torch.set_default_dtype(torch.bfloat16)  # as transformers does while it loads a model of that type
    try:
        assert scorer.score(rows) == usual
    finally:
        torch.set_default_dtype(torch.float32)


def test_closing_frees_the_weights(tiny_reward_path: Path):
    scorer = load(tiny_reward_path)
    weights = weakref.ref(scorer._model.head.weight)
    assert weights() is not None
    scorer.close()
    gc.collect()
    assert weights() is None


@pytest.mark.parametrize(
    ("item", "code", "message"),
    [
        (TokenPair([], [5]), ErrorCode.INVALID_ITEM, "tokens.prompt_ids is empty"),
        (TokenPair([5], []), ErrorCode.INVALID_ITEM, "tokens.completion_ids is empty"),
        (TokenPair([5], [6, VOCAB_SIZE]), ErrorCode.INVALID_ITEM, "tokens.completion_ids[1] is 260, outside"),
        (TokenPair([5], [-1]), ErrorCode.INVALID_ITEM, "tokens.completion_ids[0] is -1"),
        (TokenPair([5], [6] * MAX_SEQUENCE_TOKENS), ErrorCode.TOO_LONG, "513 tokens, the model takes at most 512"),
        (TextPair("p", "x" * 600), ErrorCode.TOO_LONG, "the model takes at most 512"),
        (TokenSequence([5]), ErrorCode.INVALID_ITEM, "sequence.ids has 1 entries; send prompt and completion"),
        (TokenSequence([]), ErrorCode.INVALID_ITEM, "sequence.ids has 0 entries"),
        (TokenSequence([5, 10**30]), ErrorCode.INVALID_ITEM, f"sequence.ids[1] is {10**30}, outside the vocabulary"),
        (TokenSequence([6] * (MAX_SEQUENCE_TOKENS + 1)), ErrorCode.TOO_LONG, "513 tokens"),
        (RawPair("", "x" * (MAX_SEQUENCE_TOKENS + 1)), ErrorCode.TOO_LONG, "513 tokens"),
    ],
)
def test_a_bad_item_is_refused_by_name(scorer: ModelScorer, item: Item, code: ErrorCode, message: str):
    fault = scorer.prepare(item)
    assert isinstance(fault, ScoreError)
    assert fault.code is code
    assert message in fault.message


def test_a_pair_of_exactly_the_models_length_is_scored(scorer: ModelScorer):
    pair = TokenPair([5], [6] * (MAX_SEQUENCE_TOKENS - 1))
    prepared = scorer.prepare(pair)
    assert prepared == [5] + [6] * (MAX_SEQUENCE_TOKENS - 1)
    assert len(scorer.score([prepared])) == 1


def test_the_stored_normalisation_is_applied_and_part_of_the_version(
    scorer: ModelScorer, tiny_reward_path: Path, tmp_path: Path
):
    model = ScalarModel.load(tiny_reward_path, dtype="float32")
    model.set_normalization(mean=2.0, std=4.0)
    model.save(tmp_path, load_tokenizer(tiny_reward_path))
    normalised = load(tmp_path)
    rows = rows_of_many_lengths()
    expected = [(score - 2.0) / 4.0 for score in scorer.score(rows)]
    assert normalised.score(rows) == pytest.approx(expected, abs=1e-6)
    assert normalised.info.version != scorer.info.version
    # What a difference of rewards is multiplied by to be one of logits.
    assert (normalised.info.logit_scale, scorer.info.logit_scale) == (4.0, 1.0)


def test_the_version_is_that_of_the_weights_not_of_the_folder(
    scorer: ModelScorer, tiny_reward_path: Path, tmp_path: Path
):
    ScalarModel.load(tiny_reward_path, dtype="float32").save(tmp_path, load_tokenizer(tiny_reward_path))
    assert load(tmp_path).info.version == scorer.info.version
    assert load(tmp_path, "bfloat16").info.version != scorer.info.version


def test_another_head_on_the_same_backbone_is_another_version(
    scorer: ModelScorer, tiny_reward_path: Path, tmp_path: Path
):
    model = ScalarModel.load(tiny_reward_path, dtype="float32")
    model.head.weight.data *= 2
    model.save(tmp_path, load_tokenizer(tiny_reward_path))
    assert load(tmp_path).info.version != scorer.info.version


def test_a_missing_folder_is_a_config_error_that_names_the_field(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"scorer.path is '.*nowhere': no such directory"):
        build_scorer(config_of(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"scorer.tokenizer is '.*nowhere': no such directory"):
        build_scorer(scorer_config(kind="length", tokenizer=str(tmp_path / "nowhere")))


def test_a_rule_with_a_tokenizer_reads_tokens_without_their_special_ones(tiny_reward_path: Path):
    rule = build_scorer(scorer_config(kind="length", target_length=3, tokenizer=str(tiny_reward_path)))
    completion_ids = [*load_tokenizer(tiny_reward_path).encode("yes"), EOS_ID]
    assert rule.prepare(TokenPair([USER_ID], completion_ids)) == "yes"
    assert rule.prepare(RawPair("", "yes<|end|>")) == "yes"


def test_pickled_weights_are_refused_with_what_to_do(tiny_reward_path: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_reward_path, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"scorer.path is '.*': its weights are pickles .* convert them"):
        build_scorer(config_of(folder))
