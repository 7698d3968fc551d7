"""What each stage does when its turn comes: sample, label, train, evaluate, export."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config import Section, write_config
from rlhf.errors import ConfigError
from rlhf.files import whole, write_whole
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.labelling import (
    SampledCompletion,
    SampledPrompt,
    pattern_score,
    sample_completions,
    with_texts,
    write_labelled_pairs,
)
from rlhf_cli.pipeline.lineage import Lineage
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.services import PipelineServices
from rlhf_cli.pipeline.stages import StageError
from rlhf_cli.pipeline.training_config import has_field
from services.trainer.trainings import Training

if TYPE_CHECKING:
    from rlhf.data.prompts import PromptItem
    from services.trainer.evaluation.evaluate import Evaluation, Judges

TRUE_SCORE = "true"
"""The reward service of the simulated labeller's rule, which training never asks."""
TRAINING_REWARD = "reward"
ENSEMBLE = "ensemble"
"""Folder of the members of an ensemble of reward models."""
FIRST_MEMBER = "model-0"
"""Of an ensemble: the one that a critic starts as."""
BuildConfig = Callable[[Mapping[str, object]], Section]


class Actions:
    """The work of the stages of one pipeline. Torch is imported by those that need it."""

    def __init__(self, config: PipelineConfig, services: PipelineServices, phases: Phases, lineage: Lineage) -> None:
        self._config = config
        self._services = services
        self._phases = phases
        self._lineage = lineage

    def addresses(self, policies: Sequence[str], reward: str | None, reference: str) -> dict[str, object]:
        """Returns what trainings call these services' addresses."""
        found: dict[str, object] = {
            "services.policy_targets": list(policies),
            "services.reference_target": reference,
        }
        return found if reward is None else {**found, "services.reward_target": reward}

    def sample(self, model: Path, output: Path, resume: bool) -> None:
        """Writes completions of the training prompts, as the model samples them."""
        from rlhf.models.loading import load_tokenizer
        from services.trainer.evaluation.evaluate import push_checkpoint

        options = self._config.sample
        tokenizer = load_tokenizer(model)
        items = self._prompts(self._config.prompts.path, model, options.max_prompts)
        sampling = self._config.sampling.of_each(options.completions_per_prompt)
        targets = self._services.policies(model)
        self._services.wait_ready()

        async def work(advance: Callable[[], None]) -> None:
            await push_checkpoint(targets[0], model)
            rollouts = await sample_completions(
                targets[0], items, sampling=sampling, seed=options.seed, on_rollout=advance
            )
            _write_lines(output, [asdict(each) for each in with_texts(items, rollouts, tokenizer)])

        with self._phases.counting("sampling", options.completions_per_prompt * len(items)) as advance:
            asyncio.run(work(advance))

    def label(self, completions: Path, output: Path, resume: bool) -> None:
        """Has the simulated labeller choose. Raises: StageError if it sees no difference anywhere."""
        options = self._config.label
        data = write_labelled_pairs(
            output,
            _read_completions(completions),
            seed=options.seed,
            noise_rate=options.noise_rate,
            score=pattern_score(options.pattern),
        )
        if not data.pairs:
            raise StageError(
                f"the labeller saw no difference in any of {data.num_skipped} pairs; label.pattern is "
                f"'{options.pattern}': choose one that some completions match and others do not, or another model"
            )
        self._phases.say(
            f"the labeller chose in {len(data.pairs)} pairs (and erred in {data.num_flipped}), "
            f"and saw no difference in {data.num_skipped}"
        )

    def train(
        self,
        training: Training,
        build: BuildConfig,
        fills: Mapping[str, object],
        config_file: Path,
        start: Path | None,
        reward_model: Path | None,
        output: Path,
        resume: bool,
    ) -> None:
        """Runs a training as its command, with the services it needs; its configuration stays in the run directory."""
        cls = training.config_class
        services = self._services
        policies: list[str] = []
        reward: str | None = None
        reference = ""
        if has_field(cls, "services.policy_targets") and start is not None:
            policies = services.policies(start)
        if has_field(cls, "services.reward_target"):
            reward = services.reward(reward_model)
        if start is not None:
            reference = services.reference(start)
        services.wait_ready()
        addresses = {} if start is None else self.addresses(policies, reward, reference)
        write_config(config_file, build({**fills, **addresses}))
        arguments = ["train", training.name, "--config", str(config_file)]
        if resume:
            arguments.append("--resume")
        services.run_rlhf(arguments, has_server=has_field(cls, "server.port"))
        if output.name == ENSEMBLE:
            _gather_ensemble(config_file.parent / "run", output)

    def evaluate(
        self,
        models: Mapping[str, Path],
        prompts: Path,
        reward_model: Path | None,
        rule: str | None,
        output: Path,
        resume: bool,
    ) -> None:
        """Compares the models on the held-out prompts, each in turn in the same policy services."""
        from rlhf.models.loading import load_tokenizer
        from services.trainer.evaluation.evaluate import EvaluationSettings, evaluate_served, push_checkpoint
        from services.trainer.evaluation.report import dropped_lines, tables, win_rates, write_evaluations

        config = self._config
        start = models["start"]
        tokenizer = load_tokenizer(start)
        items = self._prompts(prompts, start, config.evaluate.max_prompts)
        settings = EvaluationSettings(
            samples_per_prompt=config.evaluate.samples_per_prompt,
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            stop_ids=config.sampling.stop_ids,
            seed=config.evaluate.seed,
        )
        policies = self._services.policies(start)
        judges = self._judges(start, reward_model, rule)
        self._services.wait_ready()

        async def work(checkpoint: Path) -> "Evaluation":
            for target in policies:
                await push_checkpoint(target, checkpoint)
            return await evaluate_served(policies, judges, items, tokenizer, settings, report=self._phases.say)

        evaluations = {}
        for name, path in models.items():
            with self._phases.working(f"{name}: {len(items)} prompts, {settings.samples_per_prompt} completions each"):
                evaluations[name] = asyncio.run(work(path))
        write_evaluations(output, evaluations, {"prompts": str(prompts), **asdict(settings)})
        for table in tables(evaluations, win_rates(evaluations)):
            self._phases.show(table)
        for line in dropped_lines(evaluations):
            self._phases.say(line)

    def _judges(self, start: Path, reward_model: Path | None, rule: str | None) -> "Judges":
        """Returns what an evaluation measures with, some of it still starting."""
        from services.trainer.evaluation.evaluate import Judges

        services = self._config.services
        rewards = dict(services.evaluation_rewards)
        reward = self._services.reward(reward_model)
        if reward is not None:
            rewards[TRAINING_REWARD] = reward
        if rule is not None:
            rewards[TRUE_SCORE] = self._services.rule(rule, start)
        return Judges(
            reference_target=self._services.reference(start),
            rewards=rewards,
            wait_for_services_seconds=services.wait_for_services_seconds,
        )

    def export(self, policy: Path, stages: Sequence[str], output: Path, resume: bool) -> None:
        """Copies a policy's checkpoint out of the run, with the records of what it was made from."""
        records = [asdict(record) for stage in stages if (record := self._lineage.read(stage)) is not None]
        with whole(output) as partial:
            shutil.copytree(policy, partial)
            (partial / "lineage.json").write_text(json.dumps({"stages": records}, indent=2) + "\n", encoding="utf-8")
        self._phases.say(f"exported {policy} to {output}; serve it with `vllm serve {output}`")

    def _prompts(self, path: Path, model: Path, limit: int | None) -> "list[PromptItem]":
        """Returns the first prompts of a file, those that are too long told of and left out."""
        from transformers.utils.logging import disable_progress_bar

        from rlhf.data.prompts import load_prompts
        from rlhf.models.loading import load_tokenizer

        disable_progress_bar()  # of loading weights: the phases say what is going on
        maximum = self._config.prompts.max_prompt_tokens
        prompts = load_prompts(path, load_tokenizer(model), max_prompt_tokens=maximum)
        if prompts.num_too_long:
            self._phases.say(f"{path}: {prompts.num_too_long} prompts of more than {maximum} tokens are left out")
        return list(prompts.items[:limit])


def _gather_ensemble(run_dir: Path, output: Path) -> None:
    """Puts the models of an ensemble into a folder of their own, as links to the files."""
    for member in sorted(run_dir.glob("model-*")):
        target = output / member.name
        shutil.rmtree(target, ignore_errors=True)  # of an attempt that was killed while it copied
        shutil.copytree(member, target, copy_function=os.link)


def _write_lines(path: Path, rows: Sequence[object]) -> None:
    """Writes JSON lines, all of them or none."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read_completions(path: Path) -> list[SampledPrompt]:
    """Returns what sample() wrote. Raises: ConfigError naming the line that is something else."""
    sampled = []
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # splitlines() also splits at U+2028
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            completions = [SampledCompletion(**each) for each in row.pop("completions")]
            sampled.append(SampledPrompt(**row, completions=completions))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f'{path}:{number}: not a line of sampled completions: {{"prompt", "prompt_ids", "completions": '
                '[{"completion", "completion_ids"}, ...]}'
            ) from None
    return sampled
