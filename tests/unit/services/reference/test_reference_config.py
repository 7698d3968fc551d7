"""The reference service's configuration."""

import pytest

from rlhf.config import load_config
from rlhf.errors import ConfigError
from services.reference.config import ReferenceConfig


def load(*argv: str) -> ReferenceConfig:
    return load_config(ReferenceConfig, prog="rlhf-reference", argv=argv, env_prefix="RLHF_REFERENCE")


def test_ports_keep_their_defaults_when_another_is_given():
    config = load("--model.path", "x", "--server.port", "0")
    assert (config.server.port, config.server.metrics_port) == (0, 9053)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "model.path is required"),
        (["--model.path", "x", "--model.dtype", "float16"], "model.dtype is 'float16'; it should be 'bfloat16' or"),
        (["--model.path", "x", "--limits.max_items", "9000"], "limits.max_queue_items is 8192; .* 9000"),
        (["--model.path", "x", "--model.device", "gpu"], "model.device is 'gpu'"),
    ],
)
def test_a_bad_configuration_names_the_field_the_value_and_the_remedy(argv: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load(*argv)
