"""The parts of the frontier: each is done once and kept, with a record of what it was made from."""

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bench.frontier_services import FrontierOptions, FrontierServices
from rlhf.config import Section
from rlhf.data.prompts import PromptItem, load_prompts
from rlhf.errors import ConfigError
from rlhf.models.loading import load_tokenizer
from rlhf.rollout import Sampling
from rlhf.toml_files import write_config
from rlhf_cli.demo.options import DemoOptions
from rlhf_cli.demo.run_configs import HELDOUT_PROMPTS, MAX_PROMPT_TOKENS, TRAIN_PROMPTS, ppo_config, reward_model_config
from rlhf_cli.local.services_file import ServiceEntry
from rlhf_cli.pipeline.labelling import (
    COMPLETIONS_PER_PROMPT,
    pattern_score,
    sample_completions,
    with_texts,
    write_labelled_pairs,
)
from rlhf_cli.pipeline.lineage import Lineage
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.stages import Stage, StageError, StageRunner
from rlhf_cli.pipeline.trainings import files_of, settings_of
from services.trainer.config.offline import (
    DpoConfig,
    DpoDataConfig,
    DpoOptimizerConfig,
    DpoReferenceConfig,
    DpoRunConfig,
    FitConfig,
    OfflineModelConfig,
)
from services.trainer.config.online_sections import CriticConfig
from services.trainer.evaluation.evaluate import EvaluationSettings, Judges, evaluate_served
from services.trainer.evaluation.push import push_checkpoint
from services.trainer.evaluation.report import SUMMARY_FILE, write_evaluations

NOWHERE = ServiceEntry(name="none", kind="policy", target="localhost:1")
"""Stands for a service where a configuration is only compared."""


class FrontierStages:
    """Does the parts in turn."""

    def __init__(self, options: FrontierOptions, services: FrontierServices, phases: Phases) -> None:
        """Args: the services of this frontier. Raises: ConfigError if the demo's run lacks what is taken from it."""
        self._options = options
        self._services = services
        self._phases = phases
        self._runner = StageRunner(Lineage(options.folder), phases.say)
        # The demo's numbers, so that what is measured here is what the demo shows.
        self._demo = DemoOptions(
            run_dir=options.folder,
            engine=options.engine,
            seed=options.seed,
            max_new_tokens=options.max_new_tokens,
            steps=options.ppo_steps,
            prompts_per_step=options.prompts_per_step,
        )
        given = options.demo_run
        self.pairs = options.folder / "pairs" / "pairs.jsonl" if given is None else given / "pairs.jsonl"
        own = options.folder / "reward_model" / "run" / "model"
        self.reward_model = own if given is None else given / "reward_model" / "model"
        for path in (self.pairs, self.reward_model):
            if given is not None and not path.exists():
                raise ConfigError(f"--from is '{given}': it has no {path.name}; give the directory of a finished demo")

    def make_pairs(self) -> None:
        """Samples completions of the demo's training prompts, and has the labeller choose."""
        options = self._options
        self._do(
            "pairs",
            output=self.pairs,
            inputs={"model": options.model, "prompts": TRAIN_PROMPTS},
            settings={
                "num_prompts": options.pair_prompts,
                "pattern": options.pattern,
                "seed": options.seed,
                "max_new_tokens": options.max_new_tokens,
                "engine": options.engine,
            },
            work=self._make_pairs,
            is_given=options.demo_run is not None,
        )

    def train_reward_model(self) -> None:
        """Trains the reward model on the choices."""
        config = reward_model_config(self._demo, self._options.model)
        data = config.data.model_copy(update={"path": self.pairs})
        config = config.model_copy(update={"run_dir": self._run_dir("reward_model"), "data": data})
        given = self._options.demo_run is not None
        self._train("reward_model", ("train", "reward-model"), lambda: config, config, self.reward_model, given=given)

    def train_dpo(self, name: str, beta: float) -> Path:
        """Returns the policy that DPO makes of the pairs."""
        options = self._options

        def config(reference: ServiceEntry) -> DpoRunConfig:
            return DpoRunConfig(
                run_dir=self._run_dir(name),
                model=OfflineModelConfig(path=options.model),
                data=DpoDataConfig(path=str(self.pairs)),
                training=FitConfig(epochs=options.dpo_epochs, examples_per_step=16, seed=options.seed),
                dpo=DpoConfig(beta=beta),
                optimizer=DpoOptimizerConfig(learning_rate=options.dpo_learning_rate, warmup_steps=3),
                reference=DpoReferenceConfig(target=reference.target),
            )

        output = self._run_dir(name) / "final"
        self._train(name, ("train", "dpo"), lambda: config(self._services.reference), config(NOWHERE), output)
        return output

    def train_ppo(self, name: str, kl_coef: float) -> Path:
        """Returns the policy that PPO makes against the reward model."""

        def config(policy: ServiceEntry, reward: ServiceEntry, reference: ServiceEntry) -> Section:
            made = ppo_config(self._demo, self._options.model, policy=policy, reward=reward, reference=reference)
            return made.model_copy(
                update={
                    "run_dir": self._run_dir(name),
                    "kl": made.kl.model_copy(update={"coef": kl_coef}),
                    "critic": CriticConfig(path=self.reward_model),
                }
            )

        def with_services() -> Section:
            services = self._services
            return config(services.policy, services.reward(self.reward_model), services.reference)

        output = self._run_dir(name) / "final"
        checked = config(NOWHERE, NOWHERE, NOWHERE)
        self._train(name, ("train", "ppo"), with_services, checked, output, has_server=True)
        return output

    def evaluate(self, name: str, checkpoint: Path) -> Path:
        """Returns the summary of how a policy does on the held-out prompts."""
        options = self._options
        settings = EvaluationSettings(
            samples_per_prompt=options.eval_samples,
            max_new_tokens=options.max_new_tokens,
            temperature=self._demo.temperature,
            seed=options.seed,
        )
        stage = f"evaluate-{name}"
        output = self._folder(stage) / "results"
        self._do(
            stage,
            output=output,
            inputs={"policy": checkpoint, "prompts": HELDOUT_PROMPTS, "reward model": self.reward_model},
            settings={
                **asdict(settings),
                "num_prompts": options.heldout_prompts,
                "pattern": options.pattern,
                "engine": options.engine,
            },
            work=partial(self._evaluate, name, checkpoint, output, settings),
        )
        return output / SUMMARY_FILE

    def _make_pairs(self, resume: bool) -> None:
        options = self._options
        items = self._prompts(TRAIN_PROMPTS, options.pair_prompts)
        sampling = Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=self._demo.temperature,
            completions_per_prompt=COMPLETIONS_PER_PROMPT,
        )
        target = self._services.policy.target
        asyncio.run(push_checkpoint(target, options.model))
        with self._phases.counting("sampling", COMPLETIONS_PER_PROMPT * len(items)) as advance:
            rollouts = asyncio.run(
                sample_completions(target, items, sampling=sampling, seed=options.seed, on_rollout=advance)
            )
        sampled = with_texts(items, rollouts, self._tokenizer)
        data = write_labelled_pairs(self.pairs, sampled, seed=options.seed, score=pattern_score(options.pattern))
        if not data.pairs:
            raise StageError("the labeller saw no difference in any pair; choose another --pattern")
        self._phases.say(f"{len(data.pairs)} pairs; the labeller saw no difference in {data.num_skipped}")

    def _evaluate(self, name: str, checkpoint: Path, output: Path, settings: EvaluationSettings, resume: bool) -> None:
        items = self._prompts(HELDOUT_PROMPTS, self._options.heldout_prompts)
        services = self._services
        rewards = {"true": services.truth.target, "reward": services.reward(self.reward_model).target}
        judges = Judges(reference_target=services.reference.target, rewards=rewards)
        target = self._services.policy.target
        with self._phases.working(f"{len(items)} held-out prompts, {settings.samples_per_prompt} completions each"):
            asyncio.run(push_checkpoint(target, checkpoint))
            evaluation = asyncio.run(evaluate_served([target], judges, items, self._tokenizer, settings))
        write_evaluations(output, {name: evaluation}, asdict(settings))
        score, kl = evaluation.summary["reward/true"], evaluation.summary["kl"]
        self._phases.say(f"{name}: score {score.format()}, KL {kl.format('{:.2f}')} nats per completion")

    def _train(
        self,
        name: str,
        command: tuple[str, ...],
        config: Callable[[], Section],
        checked: Section,
        output: Path,
        *,
        has_server: bool = False,
        given: bool = False,
    ) -> None:
        """Runs a training as its command; `checked` is its configuration without the addresses of services."""
        files = files_of(checked, [self.pairs, self.reward_model])
        config_file = self._folder(name) / "config.toml"
        arguments = [*command, "--config", str(config_file)]

        def work(resume: bool) -> None:
            write_config(config_file, config())
            self._services.run_rlhf([*arguments, *(["--resume"] if resume else [])], has_server=has_server)

        settings = settings_of(checked, files)
        self._do(
            name,
            output=output,
            inputs=files,
            settings=settings,
            work=work,
            command=shlex.join(["rlhf", *arguments]),
            is_given=given,
        )

    def _do(self, name: str, **stage: Any) -> None:
        with self._phases.phase(name):
            self._runner.bring_up_to_date(Stage(name=name, folder=self._folder(name), **stage))

    def _folder(self, name: str) -> Path:
        return self._options.folder / name.replace(":", "-")

    def _run_dir(self, name: str) -> Path:
        return self._folder(name) / "run"

    def _prompts(self, path: Path, limit: int) -> list[PromptItem]:
        return list(load_prompts(path, self._tokenizer, max_prompt_tokens=MAX_PROMPT_TOKENS).items[:limit])

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._options.model)
