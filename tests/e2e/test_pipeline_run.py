"""A whole pipeline of the tiny model, its trainings as processes: killed in the middle, and resumed.

Policy, reference and reward are services that are there already; that of the labeller's rule the pipeline starts.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.models.loading import load_policy
from rlhf_cli.main import main
from rlhf_cli.pipeline.lineage import Digests
from services.reward.scorers.config import scorer_config
from tests.support.real_services import Targets, serving

PIPELINE = """
run_dir = "{folder}/run"
model = "{model}"

[prompts]
path = "{folder}/prompts.jsonl"
heldout_path = "{folder}/heldout.jsonl"
max_prompt_tokens = 64

[sampling]
max_new_tokens = 8

[services]
policy_targets = ["{policy}"]
reference_target = "{reference}"
reward_target = "{reward}"
dtype = "float32"

[label]
pattern = "[a-m]"

[reward_model.training]
examples_per_step = 8

[ppo.training]
steps = 12
prompts_per_step = 4

[ppo.checkpoint]
every_steps = 2

[dpo.training]
examples_per_step = 8
"""
STAGES = ["sample", "label", "reward_model", "ppo", "dpo", "evaluate", "export"]


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def write_pipeline(folder: Path, model: Path, targets: Targets) -> Path:
    for name, verb in (("prompts", "say"), ("heldout", "tell")):
        rows = [json.dumps({"prompt": f"{verb} {word}"}) + "\n" for word in ("a", "bc", "def", "ghij")]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    config = folder / "pipeline.toml"
    config.write_text(PIPELINE.format(folder=folder, model=model, **asdict(targets)))
    return config


def records(run_dir: Path) -> dict[str, dict[str, Any]]:
    stages = json.loads((run_dir / "lineage.json").read_text())["stages"]
    return {record["stage"]: record for record in stages}


def steps_done(run_dir: Path) -> int:
    metrics = run_dir / "ppo/run/metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def run_and_kill(config: Path, run_dir: Path) -> None:
    """Runs the pipeline as a process until PPO has done three steps, and kills it."""
    command = [sys.executable, "-m", "rlhf_cli.main", "pipeline", "run", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        assert eventually(lambda: steps_done(run_dir) >= 3 or process.poll() is not None, 120.0)
        process.send_signal(signal.SIGKILL)


def test_a_pipeline_that_was_killed_goes_on_with_the_stage_that_was_running(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    run_dir = tmp_path / "run"
    scorer = scorer_config(kind="length", tokenizer=str(tiny_model_path))
    with serving(tiny_model_path, scorer) as targets:
        config = write_pipeline(tmp_path, tiny_model_path, targets)
        run_and_kill(config, run_dir)
        before = records(run_dir)
        assert (before["reward_model"]["state"], before["ppo"]["state"]) == ("done", "running")
        assert not (run_dir / "ppo/run/final").exists()
        assert main(["pipeline", "run", str(config)]) == 2  # it holds a run: only --resume goes on in it
        assert main(["pipeline", "run", str(config), "--resume"]) == 0
    after = records(run_dir)
    assert list(after) == STAGES
    assert {record["state"] for record in after.values()} == {"done"}
    assert after["ppo"]["attempts"] == 2
    assert after["reward_model"] == before["reward_model"]  # not done again
    metrics = [json.loads(line) for line in (run_dir / "ppo/run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, 13))

    # What was made from what.
    assert after["ppo"]["inputs"]["critic.path"] == after["reward_model"]["output"]
    assert after["dpo"]["inputs"]["data.path"] == after["label"]["output"]
    assert Digests().of(run_dir / "dpo/run/final") == after["dpo"]["output"]["digest"]
    summary = json.loads((run_dir / "evaluate/results/summary.json").read_text())
    assert list(summary["evaluations"]) == ["start", "ppo", "dpo"]
    assert set(summary["win_rates"]["ppo"]) == {"reward", "true"}
    assert load_policy(run_dir / "export/model", dtype="float32").num_parameters() > 0
    assert (run_dir / "export/model/lineage.json").exists()
