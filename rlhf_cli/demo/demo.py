"""The demo: START HERE. It runs demo.toml as a pipeline, proves that the checkpoint is what was trained, reports."""

import asyncio
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tomli_w
import torch
from rich.console import Console

from rlhf.client.policy import PolicyClient, PolicyModel
from rlhf.config import load_values
from rlhf.data.prompts import PromptItem, load_prompts
from rlhf.models.loading import DtypeName, load_policy, load_tokenizer
from rlhf.models.weights import checkpoint_manifest
from rlhf.rollout import Prompt, Sampling
from rlhf_cli.demo.report import REPORT_FILE, write_report
from rlhf_cli.demo.results import RESULTS_FILE, CheckpointCheck, DemoResults, show, verdict
from rlhf_cli.local.supervisor import interrupt_on_signals
from rlhf_cli.models.fetch import fetch_small_model
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.pipeline import Pipeline, Selection, check_run_dir
from rlhf_cli.pipeline.training_config import set_value

NUM_PHASES = 9
"""Two before the stages of demo.toml, and one after them."""
CHECKED_PROMPTS = 8
QUICK = MappingProxyType(
    {
        "sample.max_prompts": 64,
        "ppo.training.steps": 3,
        "ppo.training.prompts_per_step": 16,
        "evaluate.max_prompts": 8,
        "evaluate.samples_per_prompt": 2,
    }
)
"""Changes that make a demo of a few minutes, which shows every part, and no clear effect."""
SEEDS = ("sample.seed", "label.seed", "reward_model.training.seed", "ppo.training.seed", "evaluate.seed")


def demo_values(changes: Mapping[str, object] = MappingProxyType({})) -> dict[str, Any]:
    """Returns the demo's pipeline as plain values, with the prompts of this package.

    Args:
        changes: values by dotted path, such as "ppo.training.steps".
    """
    folder = files("rlhf_cli.demo")
    values = tomllib.loads(folder.joinpath("demo.toml").read_text(encoding="utf-8"))
    prompts = {"prompts.path": "train.jsonl", "prompts.heldout_path": "heldout.jsonl"}
    for path, name in prompts.items():
        set_value(values, path, str(folder.joinpath("data", name)))
    for path, value in changes.items():
        set_value(values, path, value)
    return values


def run_demo(run_dir: Path, model: Path | None, changes: Mapping[str, object], console: Console) -> DemoResults:
    """Runs the whole demo; returns what it found, which is also printed and written to the run's directory.

    Whatever ends it, no process that it started is left.

    Args:
        run_dir: where everything is written; must be empty or not exist.
        model: checkpoint to start from; None fetches a small one.
        changes: to the demo's pipeline, values by dotted path.
    Raises: ConfigError for options that cannot be used; RunError, ServiceError, LocalServiceError if a part fails.
    """
    check_run_dir(run_dir, Selection())
    phases = Phases(console, NUM_PHASES)
    with interrupt_on_signals():
        with phases.phase("fetch the model"):
            model = model or fetch_small_model(report=phases.say)
            phases.say(f"model {model}; run {run_dir}")
        values = demo_values({**changes, "run_dir": str(run_dir), "model": str(model)})
        config = load_values(PipelineConfig, values, "the demo")
        pipeline = Pipeline(config, Selection(), phases, source="the demo")
        with pipeline.started(tomli_w.dumps(values)):
            check = _Demo(config, pipeline, phases).run()
    results = DemoResults.read(run_dir, check, phases.seconds)
    results.write_json(run_dir / RESULTS_FILE)
    write_report(config, results)
    console.print()
    show(results, console)
    phases.say(verdict(results), style="bold")
    phases.say(f"report      {run_dir / REPORT_FILE}")
    phases.say(f"checkpoint  {results.checkpoint}")
    phases.say(f"numbers     {run_dir / RESULTS_FILE}")
    return results


class _Demo:
    """The stages, and what the demo does around them."""

    def __init__(self, config: PipelineConfig, pipeline: Pipeline, phases: Phases) -> None:
        self._config = config
        self._pipeline = pipeline
        self._phases = phases

    def run(self) -> CheckpointCheck:
        """Does all of them; returns what became of the trained policy's checkpoint."""
        with self._phases.phase("start the policy, the reference, and the true score"):
            policy = self._start_services()
        trained_digest = ""
        for stage in self._pipeline.stages:
            self._pipeline.do(stage)
            if stage.name == "ppo":
                trained_digest = asyncio.run(_served_model(policy)).weights_digest
        with self._phases.phase("check the checkpoint"):
            return self._check(self._pipeline.stages[-1].output, trained_digest)

    def _start_services(self) -> str:
        """Starts, all at once, what needs no reward model; returns where the policy is."""
        services, start = self._pipeline.services, self._pipeline.plan.start
        policy = services.policy("policy", start)
        services.reference(start)
        services.rule(self._config.label.pattern, start)
        self._phases.say(f"look at them:  rlhf status --services {services.file}")
        services.wait_ready()
        return policy

    def _check(self, checkpoint: Path, trained_digest: str) -> CheckpointCheck:
        """Loads the checkpoint in a fresh engine and in transformers, and compares."""
        config, services = self._config, self._pipeline.services
        heldout = config.prompts.heldout_path
        assert heldout is not None  # demo.toml has it
        prompts = load_prompts(heldout, load_tokenizer(checkpoint), max_prompt_tokens=config.prompts.max_prompt_tokens)
        fresh = services.policy("checkpoint", checkpoint, dtype="float32")
        services.wait_ready()
        with self._phases.working("greedy completions by transformers and by the engine"):
            check = asyncio.run(
                check_checkpoint(
                    checkpoint,
                    prompts.items[:CHECKED_PROMPTS],
                    trained_digest=trained_digest,
                    trained_dtype=config.services.dtype,
                    fresh_target=fresh,
                    max_new_tokens=config.sampling.max_new_tokens,
                )
            )
        same = "the same as" if check.digests_equal else "NOT the same as"
        self._phases.say(f"its weights are {same} those that the policy service was pushed last (digest)")
        self._phases.say(
            f"greedy completions of transformers and {config.services.engine}, both float32: "
            f"{check.num_equal} of {check.num_prompts} equal token for token"
        )
        return check


async def _served_model(target: str) -> PolicyModel:
    """Returns what a policy service serves now."""
    async with PolicyClient(target) as policy:
        return await policy.get_model()


async def check_checkpoint(
    checkpoint: Path,
    prompts: Sequence[PromptItem],
    *,
    trained_digest: str,
    trained_dtype: DtypeName,
    fresh_target: str,
    max_new_tokens: int,
) -> CheckpointCheck:
    """Returns whether a saved checkpoint is the trained policy, and whether transformers and the engine read it alike.

    Args:
        checkpoint: the folder.
        prompts: whose greedy completions are compared.
        trained_digest: of the weights that the policy service was pushed last, in trained_dtype.
        fresh_target: a policy service that loaded the checkpoint in float32: in bfloat16 two correct programs may part
            where two tokens are nearly as probable.
        max_new_tokens: most tokens of a completion.
    """
    engine = await _greedy_from_service(fresh_target, prompts, max_new_tokens)
    stop_ids = list((await _served_model(fresh_target)).stop_ids)
    transformers = _greedy_from_transformers(checkpoint, prompts, max_new_tokens, stop_ids)
    return CheckpointCheck(
        digests_equal=trained_digest == checkpoint_manifest(checkpoint, trained_dtype).digest,
        num_prompts=len(prompts),
        num_equal=sum(one == other for one, other in zip(engine, transformers, strict=True)),
    )


async def _greedy_from_service(target: str, prompts: Sequence[PromptItem], max_new_tokens: int) -> list[list[int]]:
    """Returns the greedy completion of each prompt by a policy service."""
    requests = [Prompt(group_id=str(index), prompt_ids=item.prompt_ids) for index, item in enumerate(prompts)]
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    completions: dict[int, list[int]] = {}
    async with PolicyClient(target) as policy:
        async for rollout in policy.generate(requests, sampling):
            completions[int(rollout.group_id)] = rollout.completion_ids
    return [completions[index] for index in range(len(prompts))]


def _greedy_from_transformers(
    checkpoint: Path, prompts: Sequence[PromptItem], max_new_tokens: int, stop_ids: list[int]
) -> list[list[int]]:
    """Returns the greedy completion of each prompt by transformers' own generate()."""
    model = load_policy(checkpoint, dtype="float32")
    completions = []
    for item in prompts:
        input_ids = torch.tensor([item.prompt_ids])
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_ids,
        )
        completions.append(output[0, len(item.prompt_ids) :].tolist())
    return completions
