from pathlib import Path

import pytest
from pydantic import Field

from rlhf.config import Port, Section, load_config, load_toml
from rlhf.errors import ConfigError
from rlhf.serving.config import ServerConfig


class ModelSection(Section):
    path: str
    """Where the model is."""
    clip_eps: float = 0.2
    """A number."""


class ToyServer(ServerConfig):
    port: Port = 50051
    """gRPC port."""


class ToyConfig(Section):
    """A toy."""

    server: ToyServer = ToyServer()
    model: ModelSection
    targets: list[str] = Field(default=["a:1"])
    """Addresses."""


def load(*argv: str) -> ToyConfig:
    return load_config(ToyConfig, prog="toy", argv=argv, env_prefix="TOY")


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "toy.toml"
    path.write_text(text)
    return str(path)


def test_flag_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    file = write(tmp_path, "[model]\npath = 'file'\nclip_eps = 0.3\n[server]\nport = 1\nhost = 'file'\n")
    monkeypatch.setenv("TOY__SERVER__PORT", "2")
    monkeypatch.setenv("TOY__MODEL__PATH", "environment")
    config = load("--config", file, "--model.path", "flag")
    assert config.model.path == "flag"
    assert config.server.port == 2
    assert config.server.host == "file"
    assert config.model.clip_eps == 0.3
    assert config.server.drain_seconds == 30.0


def test_a_list_is_given_by_commas_or_by_repeating_the_flag():
    assert load("--model.path=x", "--targets", "a:1,b:2").targets == ["a:1", "b:2"]
    assert load("--model.path=x", "--targets", "a:1", "--targets", "b:2").targets == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\npath='x'\nclip_esp=1", "unknown key 'model.clip_esp'; did you mean 'clip_eps'?"),
        ("[model]\npath='x'\nclip_eps='wide'", "model.clip_eps is 'wide'; it should be a valid number"),
        ("[modle]\npath='x'", "unknown key 'modle'; did you mean 'model'?"),
        ("[model]\npath='x'\n[server]\nport=70000", "server.port is 70000; it should be less than or equal to 65535"),
        ("[model\n", "cannot be read as TOML"),
    ],
)
def test_a_fault_in_the_file_names_the_file_the_path_and_the_remedy(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load("--config", file)
    assert message in str(caught.value)
    assert file in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path):
    file = write(tmp_path, "[server]\nprot = 1\n")
    with pytest.raises(ConfigError) as caught:
        load("--config", file, "--server.port=many")
    unknown, port, missing = sorted(
        str(caught.value).splitlines(), key=lambda line: ("port is" in line, "required" in line)
    )
    assert "did you mean 'port'?" in unknown
    assert missing.startswith("the flags: server.port is 'many'")
    assert port == "model.path is required: set it in the TOML file or as --model.path"


def test_an_unknown_flag_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown flag '--model.pth'; did you mean '--model.path'\?"):
        load("--model.pth", "x")


def test_an_unknown_variable_of_our_prefix_is_refused(monkeypatch):
    monkeypatch.setenv("TOY__SERVR__PORT", "1")
    with pytest.raises(ConfigError, match=r"TOY__SERVR__PORT: unknown key 'servr'; did you mean 'server'\?"):
        load("--model.path", "x")


def test_a_file_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"--config is 'nowhere\.toml': no such file"):
        load("--config", "nowhere.toml")


def test_help_lists_every_flag_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--model.path" in text
    assert "Where the model is." in text
    assert "--config" in text


def test_overrides_are_laid_over_a_file(tmp_path):
    file = write(tmp_path, "[model]\npath = 'x'\nclip_eps = 0.3\n")
    config = load_toml(ToyConfig, Path(file), {"model": {"clip_eps": 0.1}})
    assert (config.model.path, config.model.clip_eps) == ("x", 0.1)
