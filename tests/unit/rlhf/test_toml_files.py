"""Configurations written as TOML are read back as they were."""

from pathlib import Path

from rlhf.config import load_toml
from rlhf.toml_files import to_toml, write_config
from rlhf_cli.demo.demo import demo_values
from rlhf_cli.pipeline.trainings import TRAININGS, build_config


def test_the_configurations_that_are_written_read_back_equal(tmp_path: Path) -> None:
    values = demo_values()
    for training in TRAININGS:
        if training.name in values:
            fills = {"models.policy_path": 'mo"del', "model.path": 'mo"del', "prompts.path": "p", "data.path": "d"}
            fills["critic.path"] = "c"
            config = build_config(training, values[training.name], fills, run_dir=tmp_path, source="demo.toml")
            write_config(tmp_path / "config.toml", config)
            assert load_toml(type(config), tmp_path / "config.toml") == config


def test_toml_has_plain_values_before_sections_and_names_nested_ones_in_full() -> None:
    assert to_toml({"a": {"x": 1, "b": {"y++": 2}}}) == '[a]\nx = 1\n\n[a.b]\n"y++" = 2\n'
    assert (
        to_toml({"a": {"x": [1, 2]}, "b": 'it\'s "b"', "c": True})
        == 'b = "it\'s \\"b\\""\nc = true\n\n[a]\nx = [1, 2]\n'
    )
