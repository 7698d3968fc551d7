"""Measures what sampling ahead saves: bench/sampling_ahead.py [--steps 14] [--sample 1.5] [--train 1.5] [--lags 0 1 2]

Real services and a real trainer on a tiny model, as processes of their own. Sampling and training are slowed by
sleeping, so that two cores are enough and what is measured is how the two overlap: the step beside the longer of them.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.local_run import RunFailedError, follow_trainer
from bench.measurements import load_average, machine_facts, positive, say, show, write_json
from rlhf_cli.local.services import DRAIN_SECONDS, ENVIRONMENT, LocalServices, ServiceEntry
from rlhf_cli.local.supervisor import ServiceDiedError, ServiceSpec, Supervisor, interrupt_on_signals
from rlhf_cli.models.tiny_model import make_tiny_model

WARM_UP_STEPS = 3
"""The first ones fill what runs ahead, and import things."""
NEW_TOKENS = 30
PROMPTS, GROUP = 8, 2
READY_TIMEOUT_SECONDS = 120.0
PAD_ID = 0
"""The only id that ends a completion: a random model seldom samples it, so the longest of a step has all its tokens."""
TRAINER = Path(__file__).with_name("sampling_ahead_trainer.py")
POLICY = Path(__file__).with_name("sampling_ahead_policy.py")
ONE_THREAD = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}


def main() -> int:
    """Measure, print the table; returns the exit code."""
    arguments = _parse()
    runs: list[dict[str, Any]] = []
    try:
        with interrupt_on_signals():
            for lag in arguments.lags:
                load = load_average()
                run = measure(lag, arguments)
                runs.append({"max_policy_lag": lag, "load_before": load, **run})
                say(f"lag {lag}: {run['seconds_a_step']:.2f} s a step")
    except (RunFailedError, ServiceDiedError) as error:
        say(f"async: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    _show(runs, to_stderr=arguments.json == "-")
    if arguments.json:
        write_json({"machine": machine_facts(), "steps": arguments.steps, "runs": runs}, arguments.json)
    return 0


def measure(lag: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the median times of a run's steps, those of the warm-up left out.

    Raises: ServiceDiedError if a service does not come up; RunFailedError if the trainer fails.
    """
    folder = arguments.folder / f"lag-{lag}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = make_tiny_model(folder / "model")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(PROMPTS * 4)))
    with Supervisor(folder / "logs", say) as supervisor:
        services = LocalServices(supervisor, folder / "services.toml", environment=ONE_THREAD)
        policy = _start_policy(services, supervisor, model, arguments.sample / NEW_TOKENS)
        scorer = ["--scorer.kind", "pattern", "--scorer.pattern", "[aeiou]", "--scorer.tokenizer", str(model)]
        reward = services.start("reward", "reward", scorer)
        reference = services.start("reference", "reference", ["--model.path", str(model), "--model.dtype", "float32"])
        services.wait_ready([policy, reward, reference], READY_TIMEOUT_SECONDS, lambda states: None)
        flags = _trainer_flags(lag, arguments.steps, folder, model, [policy, reward, reference])
        server = services.server_flags(services.announce("trainer", "trainer"))
        command = [
            sys.executable,
            str(TRAINER),
            str(arguments.train),
            "grpo",
            *flags,
            *server,
        ]
        rows = follow_trainer(command, folder / "logs" / "trainer.log", folder / "run", arguments.steps, ONE_THREAD)
    return {"train_seconds": arguments.train, **_summarise(rows[WARM_UP_STEPS:])}


def _start_policy(
    services: LocalServices, supervisor: Supervisor, model: Path, seconds_per_token: float
) -> ServiceEntry:
    """Starts the slow policy service, which samples one step's completions side by side."""
    entry = services.announce("policy", "policy")
    command = [
        sys.executable,
        str(POLICY),
        str(seconds_per_token),
        *services.server_flags(entry),
    ]
    command += ["--server.drain_seconds", str(DRAIN_SECONDS), "--model.path", str(model)]
    command += ["--model.engine", "transformers", "--model.dtype", "float32"]
    command += ["--transformers.max_num_seqs", str(PROMPTS * GROUP)]
    port = int(entry.target.rpartition(":")[2])
    supervisor.start(ServiceSpec(name=entry.name, command=command, port=port, environment=ONE_THREAD))
    return entry


def _trainer_flags(lag: int, steps: int, folder: Path, model: Path, services: Sequence[ServiceEntry]) -> list[str]:
    policy, reward, reference = (entry.target for entry in services)
    settings = {
        "run_dir": folder / "run",
        "model.path": model,
        "model.dtype": "float32",
        "model.device": "cpu",
        "prompts.path": folder / "prompts.jsonl",
        "services.policy_targets": json.dumps([policy]),
        "services.reward_target": reward,
        "services.reference_target": reference,
        "sampling.max_new_tokens": NEW_TOKENS,
        "sampling.stop_ids": json.dumps([PAD_ID]),
        "training.steps": steps,
        "training.prompts_per_step": PROMPTS,
        "training.group_size": GROUP,
        "training.max_policy_lag": lag,
        "checkpoint.every_steps": 0,
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def _summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def median(name: str) -> float:
        return statistics.median(row[name] for row in rows)

    return {
        "seconds_a_step": median("seen_seconds"),
        "sample_seconds": median("generate_seconds"),
        "policy_lag_mean": median("policy_lag_mean") if "policy_lag_mean" in rows[0] else 0.0,
        "generator_idle_fraction": median("generator_idle_fraction"),
        "trainer_idle_fraction": median("trainer_idle_fraction"),
        "rows": list(rows),
    }


def _show(runs: Sequence[dict[str, Any]], *, to_stderr: bool) -> None:
    # With lag, sampling shares the engine with the step before: how long it takes alone is what a run without lag says.
    alone = runs[0]
    longer = max(alone["sample_seconds"], alone["train_seconds"])
    table = [
        [
            str(run["max_policy_lag"]),
            f"{run['seconds_a_step']:.2f}",
            f"{run['seconds_a_step'] / longer:.2f}",
            f"{run['policy_lag_mean']:.2f}",
            f"{run['generator_idle_fraction']:.0%}",
            f"{run['trainer_idle_fraction']:.0%}",
        ]
        for run in runs
    ]
    title = f"Sampling {alone['sample_seconds']:.2f} s, training {alone['train_seconds']:.2f} s; medians of steps"
    columns = ["lag", "seconds a step", "times the longer", "mean lag of tokens", "generator idle", "trainer idle"]
    show(title, columns, table, to_stderr=to_stderr)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive, default=14, help=f"of each run; the first {WARM_UP_STEPS} warm up")
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 2], help="the first is what is compared with")
    parser.add_argument("--sample", type=float, default=1.5, help="seconds that a step's sampling sleeps")
    parser.add_argument("--train", type=float, default=1.5, help="seconds that an update lasts")
    parser.add_argument("--folder", type=Path, default=Path("build/bench-async"), help="for models, logs and runs")
    parser.add_argument("--json", metavar="FILE", help="also write JSON; - for standard output")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
