"""Loading policies and tokenizers, and what is refused."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from rlhf.errors import ConfigError
from rlhf.models import attention
from rlhf.models.loading import load_policy, load_tokenizer, stop_ids_of, tokenizer_digest
from rlhf.models.scalar_model import ScalarModel
from tests.support.tiny_model import EOS_ID, PAD_ID, make_tiny_model, make_tiny_tokenizer


def edit_config(path: Path, **values: object) -> Path:
    config_path = path / "config.json"
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | values))
    return path


def test_a_policy_is_ready_to_score(tmp_path: Path):
    edit_config(make_tiny_model(tmp_path), attention_dropout=0.5)
    model = load_policy(tmp_path, dtype="bfloat16")
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == attention.NAME
    assert model.config.attention_dropout == 0.0


def test_the_padding_id_learns_its_embedding(tmp_path: Path):
    # Many models pad with end-of-sequence, which prompts contain; torch would leave its embedding without gradient.
    model = load_policy(edit_config(make_tiny_model(tmp_path), pad_token_id=EOS_ID), dtype="float32")
    embedded = model.get_input_embeddings()(torch.tensor([EOS_ID]))
    embedded.sum().backward()
    assert model.get_input_embeddings().weight.grad[EOS_ID].tolist() == [1.0] * 64


def test_a_path_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model\.path is '.*/absent': no such directory; give the folder"):
        load_policy(tmp_path / "absent", dtype="float32")


def test_errors_name_the_field_that_the_caller_knows(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^policy\.path is '.*/absent'"):
        load_policy(tmp_path / "absent", dtype="float32", field="policy.path")
    with pytest.raises(ConfigError, match=r"^models\.critic_path is '.*/absent'"):
        ScalarModel.load(tmp_path / "absent", "float32", "models.critic_path")


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no config\.json in it"):
        load_policy(tmp_path, dtype="float32")


def test_a_folder_without_weights_is_named(tmp_path: Path):
    (make_tiny_model(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="transformers cannot load it"):
        load_policy(tmp_path, dtype="float32")


def test_weights_of_which_a_part_is_missing_are_refused(tmp_path: Path):
    weights_path = make_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(weights_path)
    del tensors["model.norm.weight"]
    save_file(tensors, weights_path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"its weights lack model\.norm\.weight"):
        load_policy(tmp_path, dtype="float32")


def test_a_reward_model_is_no_policy(tiny_reward_path: Path):
    # With tied embeddings nothing that a language model needs is missing from its weights.
    with pytest.raises(ConfigError, match="LlamaForSequenceClassification, a reward model; give a causal language"):
        load_policy(tiny_reward_path, dtype="float32")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path):
    make_tiny_model(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="no tokenizer can be read from it"):
        load_tokenizer(tmp_path)


def test_the_tiny_tokenizer_gives_text_back(tiny_model_path: Path):
    tokenizer = load_tokenizer(tiny_model_path)
    text = "Grüße,  naïve\nworld <|x|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_digest_survives_saving_and_knows_another_vocabulary(tiny_model_path: Path):
    tokenizer = make_tiny_tokenizer()
    assert tokenizer_digest(tokenizer) == tokenizer_digest(load_tokenizer(tiny_model_path))
    tokenizer.add_tokens(["extra"])
    assert tokenizer_digest(tokenizer) != tokenizer_digest(load_tokenizer(tiny_model_path))


def test_the_digest_depends_on_the_end_but_not_on_the_padding():
    plain, repadded, other_end = (make_tiny_tokenizer() for _ in range(3))
    repadded.pad_token = "<|user|>"
    other_end.eos_token = "<|assistant|>"
    assert tokenizer_digest(repadded) == tokenizer_digest(plain)
    assert tokenizer_digest(other_end) != tokenizer_digest(plain)


def test_stop_ids_come_from_model_generation_config_and_tokenizer(tiny_model_path: Path):
    model = load_policy(tiny_model_path, dtype="float32")
    tokenizer = load_tokenizer(tiny_model_path)
    assert stop_ids_of(model, tokenizer) == [EOS_ID]
    model.generation_config = GenerationConfig(eos_token_id=[7, EOS_ID])
    assert stop_ids_of(model, tokenizer) == [EOS_ID, 7]
    assert stop_ids_of(model.config, tokenizer) == [EOS_ID]
    assert PAD_ID not in stop_ids_of(model, tokenizer)


class Trap:
    """Writes a file when it is unpickled, as a checkpoint of an attacker could."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_refused_unread(tmp_path: Path):
    folder, trap = make_tiny_model(tmp_path / "model"), tmp_path / "sprung"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Trap(trap)}))
    with pytest.raises(ConfigError, match=r"its weights are pickles \(pytorch_model.bin\).* convert them"):
        load_policy(folder, dtype="float32")
    assert not trap.exists()


def test_a_pickle_beside_safetensors_is_not_read(tmp_path: Path):
    folder, trap = make_tiny_model(tmp_path / "model"), tmp_path / "sprung"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Trap(trap)}))
    load_policy(folder, dtype="float32")
    assert not trap.exists()


def test_loads_in_several_threads_leave_torchs_default_type_alone(tmp_path: Path):
    folder = make_tiny_model(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda dtype: load_policy(folder, dtype=dtype), ["bfloat16", "float32"] * 4))
    assert [model.dtype for model in models] == [torch.bfloat16, torch.float32] * 4
    assert torch.get_default_dtype() is torch.float32
