"""Configurations written as TOML are read back as they were."""

from pathlib import Path

from pydantic import Field

from rlhf.config import Section, load_toml, write_config
from rlhf_cli.demo.demo import demo_values
from rlhf_cli.pipeline.training_config import build_config
from services.trainer.trainings import TRAININGS


def test_the_configurations_that_are_written_read_back_equal(tmp_path: Path) -> None:
    values = demo_values()
    for training in TRAININGS.values():
        if training.stage in values:
            fills = {"model.path": 'mo"del', "prompts.path": "p", "data.path": "d"}
            fills["critic.path"] = "c"
            config = build_config(training, values[training.stage], fills, run_dir=tmp_path, source="demo.toml")
            write_config(tmp_path / "config.toml", config)
            assert load_toml(type(config), tmp_path / "config.toml") == config


class Inner(Section):
    names: list[str] = Field(default=[])
    """What stands in it."""


class Outer(Section):
    text: str = "default"
    """Any text."""
    share: float = 0.5
    """Any number."""
    absent: int | None = None
    """None is not written."""
    inner: Inner = Inner()
    """A section."""


def test_values_that_need_quoting_are_read_back_and_defaults_are_not_written(tmp_path: Path) -> None:
    config = Outer(text='it\'s "b"\n\\ \u2028 é', absent=None, inner=Inner(names=["a = 1", "[b]"]))
    write_config(tmp_path / "config.toml", config)
    assert load_toml(Outer, tmp_path / "config.toml") == config
    assert "share" not in (tmp_path / "config.toml").read_text()
