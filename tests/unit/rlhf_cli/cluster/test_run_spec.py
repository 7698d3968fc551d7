"""What is refused before anything is created."""

from pathlib import Path

import pytest

from rlhf.errors import ConfigError
from rlhf_cli.cluster.manifests import config_map, spec_of
from rlhf_cli.cluster.run_spec import MOST_BYTES, read_run
from services.trainer.trainings import TRAININGS

PPO = '[model]\npath = "/models/policy"\n[prompts]\npath = "{prompts}"\n[critic]\nkind = "head"\n'


def ppo_file(folder: Path, prompts: str = "prompts.jsonl", more: str = "", name: str = "first.toml") -> Path:
    """A configuration, and the prompts that it names."""
    (folder / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    path = folder / name
    path.write_text(more + PPO.format(prompts=prompts))
    return path


def refusal(algorithm: str, config: Path, **options: object) -> str:
    """What is said against a run."""
    with pytest.raises(ConfigError) as caught:
        read_run(algorithm, config, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_run_takes_the_name_of_its_file_and_keeps_its_text(tmp_path: Path) -> None:
    config = ppo_file(tmp_path)
    spec = read_run("ppo", config, files=[tmp_path / "prompts.jsonl"])
    assert (spec.name, spec.object_name) == ("first", "run-first")
    assert spec.toml == config.read_text()
    assert spec.files == {"prompts.jsonl": b'{"prompt": "Hello"}\n'}


def test_a_config_map_gives_the_run_back(tmp_path: Path) -> None:
    (tmp_path / "packed.parquet").write_bytes(b"PAR1\xff\x00")
    files = [tmp_path / "prompts.jsonl", tmp_path / "packed.parquet"]
    spec = read_run("reinforce++", ppo_file_without_critic(tmp_path), files=files, nodes=2, image="trainer:2")
    assert spec_of(config_map(spec)) == spec
    spec = read_run("ppo", ppo_file(tmp_path), files=files[:1], processes_per_node=4)
    assert spec_of(config_map(spec)) == spec


def ppo_file_without_critic(folder: Path) -> Path:
    """A configuration of the algorithms that have no critic."""
    path = ppo_file(folder)
    path.write_text(path.read_text().partition("[critic]")[0])
    return path


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        *((name, '[model]\npath = "/m"\n[prompts]\npath = "/p.jsonl"\n') for name in ("grpo", "rloo")),
        *((name, '[model]\npath = "/m"\n[prompts]\npath = "/p.jsonl"\n') for name in ("reinforce++",)),
        ("online-dpo", '[model]\npath = "/m"\n[prompts]\npath = "/p.jsonl"\n'),
        *((name, '[model]\npath = "/m"\n[data]\npath = "/d.jsonl"\n') for name in ("sft", "dpo", "reward-model")),
    ],
)
def test_every_algorithm_can_be_submitted(tmp_path: Path, algorithm: str, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert read_run(algorithm, tmp_path / "run.toml").algorithm == algorithm
    assert set(TRAININGS) >= {algorithm, "ppo"}


def test_a_wrong_field_is_named_with_its_file(tmp_path: Path) -> None:
    config = ppo_file(tmp_path, more="[training]\nstesp = 3\n")
    assert refusal("ppo", config) == f"{config}: unknown key 'training.stesp'; did you mean 'steps'?"


def test_an_unknown_algorithm_is_refused_with_the_near_one(tmp_path: Path) -> None:
    assert refusal("grop", ppo_file(tmp_path)) == "unknown algorithm 'grop'; did you mean 'grpo'?"


def test_a_file_that_is_no_toml_or_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[models\n")
    assert "broken.toml': cannot be read as TOML" in refusal("ppo", tmp_path / "broken.toml")
    assert "No such file" in refusal("ppo", tmp_path / "absent.toml")


@pytest.mark.parametrize("name", ["Run", "a_b", "-a", "a-", "", "a" * 51])
def test_a_name_that_kubernetes_refuses_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal("ppo", ppo_file(tmp_path), name=name).startswith(f"--name makes the run's name '{name}'")


def test_the_name_of_a_file_that_will_not_do_points_to_the_flag(tmp_path: Path) -> None:
    message = refusal("ppo", ppo_file(tmp_path, name="My_run.toml"))
    assert message.startswith("--config makes the run's name 'My_run'")
    assert message.endswith("give another one with --name")


def test_a_relative_path_that_is_not_among_the_files_is_refused(tmp_path: Path) -> None:
    assert refusal("ppo", ppo_file(tmp_path)) == (
        "prompts.path is 'prompts.jsonl', which is not among the run's files; give the file with --file prompts.jsonl, "
        "or an absolute path inside the container"
    )


def test_a_path_with_a_folder_is_told_where_its_file_lies(tmp_path: Path) -> None:
    config = ppo_file(tmp_path, prompts="data/prompts.jsonl")
    assert "set prompts.path to 'prompts.jsonl'" in refusal("ppo", config, files=[tmp_path / "prompts.jsonl"])


def test_a_relative_data_set_is_a_name_and_a_relative_data_file_is_a_path(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[model]\npath = "/m"\n[data]\npath = "someone/conversations"\n')
    assert read_run("sft", config).files == {}
    config.write_text('[model]\npath = "/m"\n[data]\npath = "conversations.jsonl"\n')
    assert "data.path is 'conversations.jsonl'" in refusal("sft", config)


def test_files_that_do_not_fit_a_config_map_are_refused(tmp_path: Path) -> None:
    (tmp_path / "big.jsonl").write_bytes(b"x" * MOST_BYTES)
    config = ppo_file(tmp_path, prompts="/data/prompts.jsonl")
    assert "but a ConfigMap holds 1,048,576" in refusal("ppo", config, files=[tmp_path / "big.jsonl"])


def test_files_of_one_name_or_a_strange_one_are_refused(tmp_path: Path) -> None:
    config, prompts = ppo_file(tmp_path), tmp_path / "prompts.jsonl"
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "ä.jsonl").write_text("")
    assert "there is a 'prompts.jsonl' already" in refusal("ppo", config, files=[prompts, prompts])
    assert "there is a 'run.toml' already" in refusal("ppo", config, files=[tmp_path / "run.toml"])
    assert "use only letters" in refusal("ppo", config, files=[tmp_path / "ä.jsonl"])
    assert "No such file" in refusal("ppo", config, files=[tmp_path / "absent.jsonl"])
