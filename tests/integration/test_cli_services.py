"""The command line against real services: every command that talks to one, as text and as JSON."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_cli.local.services import LocalServices, read_services
from rlhf_cli.local.supervisor import Supervisor
from rlhf_cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> Iterator[str]:
    """A services file naming a policy, a reference and a reward service of the tiny model, all serving."""
    folder = tmp_path_factory.mktemp("services")
    model = str(tiny_model_path)
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with Supervisor(folder / "logs", print, stop_grace_seconds=2.0) as supervisor:
        local = LocalServices(supervisor, folder / "services.toml", environment=environment)
        policy = ["--model.path", model, "--model.engine", "transformers", "--model.dtype", "float32"]
        rule = ["--scorer.kind", "length", "--scorer.target_length", "4", "--scorer.tokenizer", model]
        entries = [
            local.start("policy", "policy", policy),
            local.start("reference", "reference", ["--model.path", model, "--model.dtype", "float32"]),
            local.start("length", "reward", rule),
        ]
        local.wait_ready(entries, 120.0, lambda states: None)
        yield str(folder / "services.toml")


def json_lines(capsys: Capture) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_status_shows_health_model_and_version_of_each(services: str, capsys: Capture, tiny_model_path: Path) -> None:
    assert main(["status", "--services", services, "--json"]) == 0
    policy, reference, reward = json_lines(capsys)
    assert [row["health"] for row in (policy, reference, reward)] == ["serving"] * 3
    assert (policy["model"], policy["version"]) == (str(tiny_model_path), "0")
    assert reference["version"]
    assert str(reward["metrics_url"]).endswith("/metrics")
    assert main(["status", "--services", services]) == 0
    assert capsys.readouterr().out.count("serving") == 3


def test_score_prints_the_reward(services: str, capsys: Capture) -> None:
    # The rule pays 1 - |length - 4| / 4: 1 for "four", 0.5 for "it".
    assert main(["score", "--services", services, "--prompt", "p", "--completion", "four"]) == 0
    assert capsys.readouterr().out == "+1.0000  four\n"
    assert main(["score", "--services", services, "--prompt", "p", "--completion", "it", "--json"]) == 0
    (row,) = json_lines(capsys)
    assert row["reward"] == pytest.approx(0.5)


def test_scores_of_a_file_come_in_its_order_and_an_item_that_fails_is_an_error_with_its_place(
    services: str, capsys: Capture, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    texts = ["four", "x" * 1_000_001, "it"]  # the second is longer than the service takes
    path.write_text("".join(json.dumps({"prompt": "p", "completion": text}) + "\n" for text in texts))
    assert main(["score", "--services", services, "--file", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert rows[0]["reward"] == pytest.approx(1.0)
    assert rows[1]["error"]["code"] == "too_long"
    assert rows[2]["reward"] == pytest.approx(0.5)
    assert f"{path}:2: too_long" in captured.err
    assert captured.err.endswith("rlhf: 1 of 3 items have no score\n")


def test_generate_samples_every_prompt_repeatably(services: str, capsys: Capture) -> None:
    command = [
        "generate",
        "Hi",
        "Ho",
        "--services",
        services,
        "--max-new-tokens",
        "5",
        "-n",
        "2",
        "--seed",
        "3",
        "--json",
    ]
    assert main(command) == 0
    rows = json_lines(capsys)
    assert sorted((row["prompt"], row["rollout_id"]) for row in rows) == [
        ("Hi", "0/0"),
        ("Hi", "0/1"),
        ("Ho", "1/0"),
        ("Ho", "1/1"),
    ]
    assert all(len(row["completion_ids"]) == len(row["logprobs"]) <= 5 for row in rows)  # type: ignore[arg-type]
    assert main(command) == 0
    again = json_lines(capsys)
    assert {row["rollout_id"]: row["completion_ids"] for row in rows} == {
        row["rollout_id"]: row["completion_ids"] for row in again
    }


def test_logprobs_of_what_the_policy_sampled_are_what_it_said(services: str, capsys: Capture) -> None:
    assert main(["logprobs", "--services", services, "--prompt", "Hi", "--completion", "abc", "--json"]) == 0
    (row,) = json_lines(capsys)
    assert len(row["logprobs"]) == len(row["completion_ids"]) == 4  # type: ignore[arg-type]  # three bytes and the end
    assert row["sum_logprobs"] == pytest.approx(sum(row["logprobs"]))  # type: ignore[arg-type,call-overload]
    assert main(["logprobs", "--services", services, "--prompt", "Hi", "--completion", "abc"]) == 0
    assert "over 4 tokens" in capsys.readouterr().out


def test_eval_of_the_policy_against_itself_finds_no_kl(services: str, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(3)))
    command = ["eval", "--prompts", str(path), "--services", services, "--max-new-tokens", "6", "-n", "2"]
    assert main([*command, "--json"]) == 0
    (row,) = json_lines(capsys)
    summary = row["summary"]
    assert isinstance(summary, dict)
    assert set(summary) >= {"reward/length", "kl", "num_tokens"}
    assert summary["kl"]["mean"] == pytest.approx(0.0, abs=1e-3)  # policy and reference are the same float32 model
    assert summary["kl"]["count"] == 6
    assert main(command) == 0
    assert "reward/length" in capsys.readouterr().out


def test_eval_compares_a_service_with_a_checkpoint_that_it_serves_itself(
    services: str, capsys: Capture, tmp_path: Path, tiny_model_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(3)))
    target = next(entry.target for entry in read_services(Path(services)) if entry.kind == "policy")
    command = ["eval", "--prompts", str(path), "--services", services, "--max-new-tokens", "6", "-n", "2", "--json"]
    command += ["--policy", f"start={target}", "--checkpoint", f"ppo:0.1={tiny_model_path}"]
    command += ["--engine", "transformers", "--dtype", "float32", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    start, other = json_lines(capsys)
    assert (start["name"], other["name"]) == ("start", "ppo:0.1")
    # The same weights, prompts and seeds: the same completions, so every completion ties with its own copy. The KL, 0
    # but for rounding, is left out: the last bits of log-probabilities differ with the batches that services form.
    assert abs(start["summary"].pop("kl")["mean"]) < 1e-4  # type: ignore[attr-defined]
    assert abs(other["summary"].pop("kl")["mean"]) < 1e-4  # type: ignore[attr-defined]
    assert start["summary"] == other["summary"]
    assert other["win_rates"]["length"]["rate"]["mean"] == 0.5  # type: ignore[index]
    assert len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == 12

    plot = tmp_path / "frontier.png"
    command = ["frontier", str(tmp_path / "out/summary.json"), "--score", "length", "--plot", str(plot)]
    assert main(command) == 0
    assert "ppo, kl_coef 0.1" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_prompt_that_is_too_long_is_refused_with_the_services_own_words(services: str, capsys: Capture) -> None:
    assert main(["generate", "x" * 600, "--services", services]) == 1
    assert "512" in capsys.readouterr().err


def test_a_services_file_that_does_not_exist_exits_2(capsys: Capture) -> None:
    assert main(["status", "--services", "nothing.toml"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_progress_and_errors_never_mix_with_json_on_stdout(services: str, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "completion": "four"}) + "\n" for _ in range(130)))
    assert main(["score", "--services", services, "--file", str(path), "--json"]) == 0
    assert len(json_lines(capsys)) == 130
    assert sys.stdout is not sys.stderr
