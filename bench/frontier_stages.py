"""The parts of the frontier: each is done once and kept, with a record of what it was made from."""

import asyncio
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from rlhf.config import Section, load_values, write_config
from rlhf.data.prompts import PromptItem, load_prompts
from rlhf.errors import ConfigError
from rlhf.models.loading import load_tokenizer
from rlhf.rollout import Sampling
from rlhf_cli.demo.demo import SEEDS, demo_values
from rlhf_cli.local.supervisor import Supervisor
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.labelling import pattern_score, sample_completions, with_texts, write_labelled_pairs
from rlhf_cli.pipeline.lineage import Lineage
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.services import PipelineServices
from rlhf_cli.pipeline.stages import Stage, StageError, StageRunner
from rlhf_cli.pipeline.training_config import build_config, files_of, settings_of
from services.trainer.evaluation.evaluate import EvaluationSettings, Judges, evaluate_served, push_checkpoint
from services.trainer.evaluation.report import SUMMARY_FILE, write_evaluations
from services.trainer.trainings import TRAININGS

NOWHERE = "localhost:1"
"""Stands for the address of a service where a configuration is only compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierOptions:
    """How the frontier is made."""

    folder: Path
    model: Path
    demo_run: Path | None
    """A finished demo whose pairs and reward model are taken."""
    engine: Literal["vllm", "transformers"]
    pattern: str
    """What the labeller likes."""
    seed: int
    max_new_tokens: int
    pair_prompts: int
    heldout_prompts: int
    eval_samples: int
    ppo_steps: int
    prompts_per_step: int
    dpo_epochs: int
    dpo_learning_rate: float

    def pipeline(self) -> PipelineConfig:
        """Returns the demo's pipeline with what is different here, so that what is measured is what the demo shows."""
        changes = {
            "run_dir": str(self.folder),
            "model": str(self.model),
            "services.engine": self.engine,
            "sampling.max_new_tokens": self.max_new_tokens,
            "sample.max_prompts": self.pair_prompts,
            "label.pattern": self.pattern,
            "ppo.training.steps": self.ppo_steps,
            "ppo.training.prompts_per_step": self.prompts_per_step,
            "dpo.training": {"epochs": self.dpo_epochs, "examples_per_step": 16, "seed": self.seed},
            "dpo.optimizer": {"learning_rate": self.dpo_learning_rate, "warmup_steps": 3},
            "evaluate.max_prompts": self.heldout_prompts,
            "evaluate.samples_per_prompt": self.eval_samples,
            **dict.fromkeys(SEEDS, self.seed),
        }
        return load_values(PipelineConfig, demo_values(changes), "the frontier")


@contextmanager
def frontier_stages(options: FrontierOptions, phases: Phases) -> Iterator["FrontierStages"]:
    """Gives the parts and the services that they share; none of those is left, whatever ends the block."""
    options.folder.mkdir(parents=True, exist_ok=True)
    config = options.pipeline()
    with Supervisor(options.folder / "logs", phases.say) as supervisor:
        yield FrontierStages(options, config, PipelineServices(config, supervisor, phases), phases)


class FrontierStages:
    """Does the parts in turn."""

    def __init__(
        self, options: FrontierOptions, config: PipelineConfig, services: PipelineServices, phases: Phases
    ) -> None:
        """Args: the services of this frontier. Raises: ConfigError if the demo's run lacks what is taken from it."""
        self._options = options
        self._config = config
        self._services = services
        self._phases = phases
        self._runner = StageRunner(Lineage(options.folder), phases.say)
        given = options.demo_run
        self.pairs = options.folder / "pairs" / "pairs.jsonl" if given is None else given / "label" / "pairs.jsonl"
        self.reward_model = (given or options.folder) / "reward_model" / "run" / "model"
        for path in (self.pairs, self.reward_model):
            if given is not None and not path.exists():
                raise ConfigError(f"--from is '{given}': it has no {path.name}; give the directory of a finished demo")

    def make_pairs(self) -> None:
        """Samples completions of the demo's training prompts, and has the labeller choose."""
        options = self._options
        self._do(
            "pairs",
            output=self.pairs,
            inputs={"model": options.model, "prompts": self._config.prompts.path},
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
        given = self._options.demo_run is not None
        self._train("reward_model", "reward_model", {}, self.reward_model, given=given)

    def train_dpo(self, name: str, beta: float) -> Path:
        """Returns the policy that DPO makes of the pairs."""
        output = self._folder(name) / "run" / "final"
        self._train(name, "dpo", {"dpo.beta": beta}, output)
        return output

    def train_ppo(self, name: str, kl_coef: float) -> Path:
        """Returns the policy that PPO makes against the reward model."""
        output = self._folder(name) / "run" / "final"
        self._train(name, "ppo", {"kl.coef": kl_coef}, output)
        return output

    def evaluate(self, name: str, checkpoint: Path) -> Path:
        """Returns the summary of how a policy does on the held-out prompts."""
        options = self._options
        settings = EvaluationSettings(
            samples_per_prompt=options.eval_samples,
            max_new_tokens=options.max_new_tokens,
            temperature=self._config.sampling.temperature,
            seed=options.seed,
        )
        stage = f"evaluate-{name}"
        output = self._folder(stage) / "results"
        self._do(
            stage,
            output=output,
            inputs={"policy": checkpoint, "prompts": self._heldout, "reward model": self.reward_model},
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
        items = self._prompts(self._config.prompts.path, options.pair_prompts)
        sampling = Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=self._config.sampling.temperature,
            completions_per_prompt=self._config.sample.completions_per_prompt,
        )
        target = self._services.policy("policy", options.model)
        self._services.wait_ready()
        asyncio.run(push_checkpoint(target, options.model))
        with self._phases.counting("sampling", sampling.completions_per_prompt * len(items)) as advance:
            rollouts = asyncio.run(
                sample_completions(target, items, sampling=sampling, seed=options.seed, on_rollout=advance)
            )
        sampled = with_texts(items, rollouts, self._tokenizer)
        data = write_labelled_pairs(self.pairs, sampled, seed=options.seed, score=pattern_score(options.pattern))
        if not data.pairs:
            raise StageError("the labeller saw no difference in any pair; choose another --pattern")
        self._phases.say(f"{len(data.pairs)} pairs; the labeller saw no difference in {data.num_skipped}")

    def _evaluate(self, name: str, checkpoint: Path, output: Path, settings: EvaluationSettings, resume: bool) -> None:
        items = self._prompts(self._heldout, self._options.heldout_prompts)
        target, reference, rewards = self._judges()
        judges = Judges(reference_target=reference, rewards=rewards)
        with self._phases.working(f"{len(items)} held-out prompts, {settings.samples_per_prompt} completions each"):
            asyncio.run(push_checkpoint(target, checkpoint))
            evaluation = asyncio.run(evaluate_served([target], judges, items, self._tokenizer, settings))
        write_evaluations(output, {name: evaluation}, asdict(settings))
        score, kl = evaluation.summary["reward/true"], evaluation.summary["kl"]
        self._phases.say(f"{name}: score {score.format()}, KL {kl.format('{:.2f}')} nats per completion")

    def _judges(self) -> tuple[str, str, dict[str, str]]:
        """Returns where policy, reference and rewards are; those that do not run yet are started."""
        services, start = self._services, self._options.model
        policy, reference = services.policy("policy", start), services.reference(start)
        reward = services.reward(self.reward_model)
        assert reward is not None  # there is a reward model by now
        rewards = {"true": services.rule(self._options.pattern, start), "reward": reward}
        services.wait_ready()
        return policy, reference, rewards

    def _train(
        self, name: str, training_name: str, changes: Mapping[str, object], output: Path, *, given: bool = False
    ) -> None:
        """Runs a training of the demo's pipeline, with changes by dotted path, as its command."""
        training = next(each for each in TRAININGS.values() if each.stage == training_name)
        is_online = training_name == "ppo"
        table = self._config.table(training_name) or {}

        def build(policy: str, reward: str, reference: str) -> Section:
            fills: dict[str, object] = {
                **changes,
                "model.path": str(self._options.model),
                "data.path": str(self.pairs),
                "critic.path": str(self.reward_model),
                "prompts.path": str(self._config.prompts.path),
                "prompts.max_prompt_tokens": self._config.prompts.max_prompt_tokens,
                "sampling.max_new_tokens": self._config.sampling.max_new_tokens,
                "sampling.temperature": self._config.sampling.temperature,
                "services.policy_targets": [policy],
                "services.reward_target": reward,
                "services.reference_target": reference,
            }
            table_left = {key: value for key, value in table.items() if key != "kl"}  # changes say it
            return build_config(training, table_left, fills, run_dir=self._folder(name) / "run", source=name)

        checked = build(NOWHERE, NOWHERE, NOWHERE)
        files = files_of(checked, [self.pairs, self.reward_model])
        config_file = self._folder(name) / "config.toml"
        arguments = ["train", training.name, "--config", str(config_file)]

        def work(resume: bool) -> None:
            targets = (NOWHERE, NOWHERE, NOWHERE)
            if training_name != "reward_model":
                policy, reference, rewards = self._judges()
                targets = (policy, rewards["reward"], reference)
            write_config(config_file, build(*targets))
            self._services.run_rlhf([*arguments, *(["--resume"] if resume else [])], has_server=is_online)

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
            self._runner.bring_up_to_date(Stage(name=name, title=name, folder=self._folder(name), **stage))

    def _folder(self, name: str) -> Path:
        return self._options.folder / name.replace(":", "-")

    @property
    def _heldout(self) -> Path:
        assert self._config.prompts.heldout_path is not None  # the demo has held-out prompts
        return self._config.prompts.heldout_path

    def _prompts(self, path: Path, limit: int) -> list[PromptItem]:
        return list(
            load_prompts(path, self._tokenizer, max_prompt_tokens=self._config.prompts.max_prompt_tokens).items[:limit]
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._options.model)
