"""Exit codes and messages of `rlhf`, and that it starts without what it does not need."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli.main import COMMANDS, LazyGroup, main
from tests.support.ports import free_port

Capture = pytest.CaptureFixture[str]


def nobody() -> str:
    """A local target at which nothing listens."""
    return f"127.0.0.1:{free_port()}"


def test_help_of_every_command_exits_0(capsys: Capture) -> None:
    for command in (
        [],
        ["demo"],
        ["train"],
        ["train", "ppo"],
        ["train", "reward-model"],
        ["generate"],
        ["score"],
        ["reward", "report"],
        ["reward", "load"],
        ["reward", "compare"],
        ["logprobs"],
        ["status"],
        ["eval"],
        ["submit"],
        ["runs"],
        ["runs", "resume"],
    ):
        assert main([*command, "--help"]) == 0
        assert "Usage: rlhf" in capsys.readouterr().out


def loaded_by(*command: str) -> set[str]:
    """Returns the modules that a process has loaded when it has shown the help of a command."""
    script = (
        "import sys; from rlhf_cli.main import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command, "--help"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "transformers", "numpy", "grpc", "google.protobuf", "structlog", "prometheus_client", "kubernetes"}


def test_the_list_of_commands_loads_none_of_them() -> None:
    loaded = loaded_by()
    assert not loaded & {*HEAVY, "pydantic", "rich", "rlhf_cli.commands", "rlhf.config", "asyncio"}
    assert {"typer", "rlhf.errors"} <= loaded


@pytest.mark.parametrize("command", [*COMMANDS, "train ppo", "train reward-model", "runs resume", "reward report"])
def test_the_help_of_a_command_loads_neither_models_nor_network_nor_configuration(command: str) -> None:
    assert not loaded_by(*command.split()) & {*HEAVY, "rlhf.config"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(command: str) -> None:
    described = LazyGroup("rlhf", "", COMMANDS).get_command(None, command).help
    assert COMMANDS[command].help == described.splitlines()[0]


def test_a_command_that_is_nearly_known_is_suggested(capsys: Capture) -> None:
    assert main(["trian"]) == 2
    assert "No such command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_an_unknown_command_or_option_exits_2(capsys: Capture) -> None:
    assert main(["nothing"]) == 2
    assert main(["score", "--nothing"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_a_typo_in_a_field_exits_2_with_a_suggestion(capsys: Capture) -> None:
    assert main(["train", "ppo", "--training.stesp", "3"]) == 2
    assert "rlhf: unknown flag '--training.stesp'; did you mean '--training.steps'?" in capsys.readouterr().err


def test_a_missing_field_and_a_stray_argument_exit_2(capsys: Capture) -> None:
    assert main(["train", "reward-model"]) == 2
    assert "rlhf: model.path is required" in capsys.readouterr().err
    assert main(["train", "ppo", "run.toml"]) == 2
    assert "rlhf: unexpected argument 'run.toml'" in capsys.readouterr().err


def test_the_fields_of_a_training_can_be_listed(capsys: Capture) -> None:
    assert main(["train", "reward-model", "--fields"]) == 0
    assert "--training.examples_per_step" in capsys.readouterr().out


def test_a_model_that_is_not_there_exits_2_before_anything_is_trained(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--run_dir", str(tmp_path / "run"), "--model.path", str(tmp_path / "no"), "--data.path", "x.jsonl"]
    assert main(["train", "reward-model", *arguments]) == 2
    assert "no such directory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_service_that_is_away_exits_1_and_says_where(capsys: Capture) -> None:
    target = nobody()
    assert main(["score", "--target", target, "--prompt", "p", "--completion", "c"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"rlhf: {target} refuses connections; is the service running?\n"
    assert captured.out == ""


def test_status_of_services_that_are_away_is_a_table_on_stdout_and_exits_1(capsys: Capture) -> None:
    flags = [word for kind in ("policy", "reward", "reference", "trainer") for word in (f"--{kind}", nobody())]
    assert main(["status", *flags]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("away") == 4
    assert captured.err == "rlhf: not serving: policy, reward, reference, trainer\n"


def test_arguments_that_do_not_fit_together_exit_2(tmp_path: Path, capsys: Capture) -> None:
    assert main(["generate"]) == 2
    assert main(["score", "--prompt", "p"]) == 2
    (tmp_path / "p.jsonl").write_text("{}")
    assert main(["eval", "--prompts", str(tmp_path / "p.jsonl"), "--temperature", "0", "-n", "2"]) == 2
    assert "--temperature 0 is greedy" in capsys.readouterr().err
    assert main(["eval", "--prompts", "p.jsonl", "--reward", "a=x:1", "--reward", "a=y:1"]) == 2
    assert "--reward names 'a' twice" in capsys.readouterr().err


def test_a_demo_does_not_write_into_a_directory_that_holds_something(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--run-dir", str(tmp_path)]) == 2
    assert "it is not empty; choose another directory" in capsys.readouterr().err
