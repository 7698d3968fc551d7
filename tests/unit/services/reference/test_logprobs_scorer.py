"""The reference scorer against a straightforward transformers forward pass."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.errors import ConfigError
from rlhf.models.loading import load_tokenizer, tokenizer_digest
from rlhf.models.weights import checkpoint_manifest
from services.reference.config import ModelConfig
from services.reference.core import LogprobsItem
from services.reference.scorer import TransformersScorer, load_logprobs_scorer
from tests.support.tiny_model import MAX_SEQUENCE_TOKENS, VOCAB_SIZE


def config_of(path: Path, dtype: str = "float32") -> ModelConfig:
    return ModelConfig.model_validate({"path": str(path), "dtype": dtype, "device": "cpu"})


@pytest.fixture(scope="module")
def scorer(tiny_model_path: Path) -> TransformersScorer:
    return load_logprobs_scorer(config_of(tiny_model_path))


def completions_of_many_lengths() -> list[LogprobsItem]:
    generator = torch.Generator().manual_seed(2)
    lengths = [(1, 1), (3, 40), (70, 2), (9, 9)]
    return [
        LogprobsItem(*(torch.randint(0, VOCAB_SIZE, (n,), generator=generator).tolist() for n in pair))
        for pair in lengths
    ]


def oracle(path: Path, completions: list[LogprobsItem], temperature: float) -> list[list[float]]:
    """One unpadded float32 forward pass of transformers for each completion; logits at t - 1 tell of token t."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    rows = []
    for item in completions:
        ids = [*item.prompt_ids, *item.completion_ids]
        with torch.no_grad():
            logprobs = (model(torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)
        rows.append([float(logprobs[t - 1, ids[t]]) for t in range(len(item.prompt_ids), len(ids))])
    return rows


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_in_float32_are_those_of_transformers(
    scorer: TransformersScorer, tiny_model_path: Path, temperature: float
):
    completions = completions_of_many_lengths()
    rows = scorer.compute(completions, temperature)
    expected = oracle(tiny_model_path, completions, temperature)
    assert [len(row) for row in rows] == [1, 40, 2, 9]
    for row, expected_row in zip(rows, expected, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-4)
        assert max(row) <= 0


def test_logprobs_in_bfloat16_are_near_those_of_float32(tiny_model_path: Path):
    completions = completions_of_many_lengths()
    rows = load_logprobs_scorer(config_of(tiny_model_path, "bfloat16")).compute(completions, 1.0)
    for row, expected in zip(rows, oracle(tiny_model_path, completions, 1.0), strict=True):
        assert row == pytest.approx(expected, abs=0.2)


def test_the_scorer_tells_its_weights_tokenizer_and_limits(scorer: TransformersScorer, tiny_model_path: Path):
    info = scorer.info
    assert info.version == checkpoint_manifest(tiny_model_path, "float32").digest
    assert info.tokenizer_digest == tokenizer_digest(load_tokenizer(tiny_model_path))
    assert (info.max_sequence_tokens, info.vocab_size) == (MAX_SEQUENCE_TOKENS, VOCAB_SIZE)


def test_a_missing_folder_is_a_config_error_that_names_the_field(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model.path is '.*nowhere': no such directory"):
        load_logprobs_scorer(config_of(tmp_path / "nowhere"))
