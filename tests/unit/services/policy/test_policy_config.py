import pytest

from rlhf.config import load_config
from rlhf.errors import ConfigError
from services.policy.config import PolicyConfig


def load(*argv: str) -> PolicyConfig:
    return load_config(PolicyConfig, prog="rlhf-policy", argv=argv, env_prefix="RLHF_POLICY")


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def test_a_model_is_all_that_must_be_given(model):
    config = load("--model.path", model)
    assert (config.server.port, config.server.metrics_port) == (50051, 9051)
    assert config.model.engine == "vllm"


def test_flags_reach_every_section(model):
    config = load("--model.path", model, "--server.port", "0", "--model.engine", "transformers", "--vllm.cpu_cores=0-1")
    assert (config.server.port, config.model.engine, config.vllm.cpu_cores) == (0, "transformers", "0-1")
    assert config.server.metrics_port == 9051


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"model\.path is required"),
        (["--model.path", "/nowhere"], r"model\.path is '/nowhere'; no such directory"),
        (["--model.path", "{model}", "--model.engine", "vlm"], r"model\.engine is 'vlm'"),
        (["--model.path", "{model}", "--model.dtyp", "float32"], r"'--model\.dtyp'; did you mean '--model\.dtype'"),
        (
            ["--model.path", "{model}", "--server.max_message_bytes", "1000000"],
            r"limits\.max_chunk_bytes is 16777216, more than server\.max_message_bytes \(1000000\)",
        ),
    ],
)
def test_a_configuration_that_cannot_work_names_the_key_the_value_and_the_remedy(model, argv, message):
    with pytest.raises(ConfigError, match=message):
        load(*(argument.format(model=model) for argument in argv))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"it has no config\.json"):
        load("--model.path", str(tmp_path))
