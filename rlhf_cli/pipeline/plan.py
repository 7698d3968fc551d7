"""Which stages a pipeline has, and what flows between them:

model ──► sft ──┬──► sample ──► label ──┬──► reward_model ──┐
                │                       └──► dpo            ├──► evaluate ──► export
                └──► ppo, grpo, ... ◄── reward_model ───────┘
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.config import Section
from rlhf.errors import ConfigError
from rlhf_cli.pipeline.actions import ENSEMBLE, FIRST_MEMBER, Actions
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.stages import Stage
from rlhf_cli.pipeline.training_config import build_config, files_of, has_field, is_set, settings_of
from services.trainer.trainings import TRAININGS, Training

SFT, REWARD_MODEL = TRAININGS["sft"], TRAININGS["reward-model"]
POLICY_TRAININGS = tuple(each for each in TRAININGS.values() if each.is_policy)
NOT_YET = "localhost:1"
"""Stands for the address of a service that is started later, where a configuration is only checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The stages in their order, with what they make."""

    stages: list[Stage]
    start: Path
    """The model that the policy's training starts from, and the reference."""
    policies: Mapping[str, Path]
    """What was trained from it, by the name of the stage."""


def make_plan(config: PipelineConfig, actions: Actions, *, source: str) -> Plan:
    """Returns the stages of a pipeline, all of whose configurations have been checked.

    Args:
        actions: do what the stages say.
        source: where the configuration stands, for errors.
    Raises: ConfigError for a table that its training refuses, or for stages that do not fit together.
    """
    return _Planner(config, actions, source).plan()


class _Planner:
    """Builds the plan of one pipeline."""

    def __init__(self, config: PipelineConfig, actions: Actions, source: str) -> None:
        self._config = config
        self._actions = actions
        self._source = source
        self._stages: list[Stage] = []

    def plan(self) -> Plan:
        config = self._config
        start = self._training(SFT, {"model.path": config.model, **self._shared_fills()}) or config.model
        pairs = self._pairs(start)
        fills: dict[str, object] = {"model.path": start, **self._shared_fills()}
        pair_fills = {} if pairs is None else {"data.path": pairs}
        reward_model = self._training(REWARD_MODEL, {**fills, **pair_fills})
        policies: dict[str, Path] = {}
        for training in POLICY_TRAININGS:
            own = pair_fills if training.learns_from_pairs else self._critic(training, reward_model)
            trained = self._training(training, {**fills, **own}, start=start, reward_model=reward_model)
            if trained is not None:
                policies[training.stage] = trained
        if config.evaluate.enabled:
            self._evaluation(start, policies, reward_model)
        if config.export.enabled and policies:
            self._export(policies)
        return Plan(stages=self._stages, start=start, policies=policies)

    def _pairs(self, start: Path) -> Path | None:
        """Returns the file of preferences; None if no stage makes or gives one."""
        label = self._config.label
        if label.artifact is not None:
            return self._add_given("label", label.artifact)
        wanting = [each for each in TRAININGS.values() if each.learns_from_pairs]
        is_wanted = any(self._config.table(each.stage) is not None for each in wanting)
        if not label.enabled or not is_wanted:
            return None
        completions = self._completions(start)
        return self._add(
            "label",
            "the simulated labeller chooses",
            "pairs.jsonl",
            partial(self._actions.label, completions),
            inputs={"completions": completions},
            settings={"pattern": label.pattern, "noise_rate": label.noise_rate, "seed": label.seed},
        )

    def _completions(self, start: Path) -> Path:
        """Returns the file of completions to be labelled."""
        sample = self._config.sample
        if sample.artifact is not None:
            return self._add_given("sample", sample.artifact)
        if not sample.enabled:
            raise ConfigError(
                f"{self._source}: sample.enabled is false, but the simulated labeller needs completions; give "
                "sample.artifact, or preferences of your own as label.artifact"
            )
        return self._add(
            "sample",
            f"{sample.completions_per_prompt} completions of each prompt",
            "completions.jsonl",
            partial(self._actions.sample, start),
            inputs={"model": start, "prompts": self._config.prompts.path},
            settings={**sample.model_dump(mode="json", exclude={"enabled", "artifact"}), **self._sampling_settings()},
        )

    def _training(
        self,
        training: Training,
        fills: Mapping[str, object],
        *,
        start: Path | None = None,
        reward_model: Path | None = None,
    ) -> Path | None:
        """Adds the stage of a training, and returns the model it makes; None if there is no such table."""
        table = self._config.table(training.stage)
        if table is None:
            return None
        if "artifact" in table:
            return self._add_given(training.stage, Path(str(table["artifact"])))
        folder = self._config.run_dir / training.stage
        source = f"{self._source} [{training.stage}]"
        reward_inputs, reward_settings = self._reward(training, reward_model, source)
        build = partial(build_config, training, table, run_dir=folder / "run", source=source)
        fills = {path: str(value) if isinstance(value, Path) else value for path, value in fills.items()}
        checked = build({**fills, **self._actions.addresses([NOT_YET], NOT_YET, NOT_YET)})
        made = [stage.output for stage in self._stages]
        files = files_of(checked, [*made, *(path / FIRST_MEMBER for path in made)])
        config_file = folder / "config.toml"
        return self._add(
            training.stage,
            _title(training, checked),
            _output(training, checked),
            partial(self._actions.train, training, build, fills, config_file, start, reward_model),
            inputs={**files, **reward_inputs},
            settings={**settings_of(checked, files), **reward_settings},
            command=shlex.join(["rlhf", "train", training.name, "--config", str(config_file)]),
        )

    def _reward(
        self, training: Training, reward_model: Path | None, source: str
    ) -> tuple[dict[str, Path], dict[str, Any]]:
        """Returns the inputs and settings that are the reward of a training. Raises: ConfigError if there is none."""
        target = self._config.services.reward_target
        if not has_field(training.config_class, "services.reward_target"):
            return {}, {}
        if target is not None:
            return {}, {"reward_target": target}  # what is there decides what is learned
        if reward_model is None:
            raise ConfigError(
                f"{source}: there is nothing to train against; add a table [reward_model], or name a reward service as "
                "services.reward_target"
            )
        return {"reward model": reward_model}, self._combination(reward_model)

    def _combination(self, reward_model: Path) -> dict[str, Any]:
        """Returns how the members of an ensemble make one reward; nothing for a single model."""
        services = self._config.services
        if reward_model.name != ENSEMBLE:
            return {}
        return {"reward_combine": services.reward_combine, "reward_std_coef": services.reward_std_coef}

    def _critic(self, training: Training, reward_model: Path | None) -> dict[str, object]:
        """Returns where a separate critic starts, if the training has one and the table does not say."""
        table = self._config.table(training.stage) or {}
        critic = table.get("critic", {})
        is_head = isinstance(critic, Mapping) and critic.get("kind") == "head"
        if reward_model is None or is_head:
            return {}
        return {"critic.path": reward_model / FIRST_MEMBER if reward_model.name == ENSEMBLE else reward_model}

    def _shared_fills(self) -> dict[str, object]:
        config = self._config
        fills: dict[str, object] = {
            "prompts.path": config.prompts.path,
            "prompts.max_prompt_tokens": config.prompts.max_prompt_tokens,
            "model.dtype": config.services.dtype,
            "services.wait_for_services_seconds": config.services.wait_for_services_seconds,
        }
        sampling = config.sampling.model_dump(mode="json", exclude_unset=True)
        return fills | {f"sampling.{name}": value for name, value in sampling.items()}

    def _sampling_settings(self) -> dict[str, Any]:
        config = self._config
        settings = {"sampling": config.sampling.model_dump(mode="json")}
        settings["prompts"] = {"max_prompt_tokens": config.prompts.max_prompt_tokens}
        services = config.services
        if services.policy_targets:
            return {**settings, "policy_targets": list(services.policy_targets)}
        return {**settings, "engine": services.engine, "dtype": services.dtype}

    def _evaluation(self, start: Path, policies: Mapping[str, Path], reward_model: Path | None) -> None:
        config = self._config
        heldout = config.prompts.heldout_path
        assert heldout is not None  # PipelineConfig has seen to it
        models = {"start": start, **policies}
        is_simulated = any(stage.name == "label" and not stage.is_given for stage in self._stages)
        rule = config.label.pattern if is_simulated else None
        self._add(
            "evaluate",
            f"{' and '.join(models)} on held-out prompts",
            "results",
            partial(self._actions.evaluate, models, heldout, reward_model, rule),
            inputs={
                "prompts": heldout,
                **{f"policy {name}": path for name, path in models.items()},
                **({} if reward_model is None else {"reward model": reward_model}),
            },
            settings={
                **config.evaluate.model_dump(mode="json"),
                **self._sampling_settings(),
                **({} if reward_model is None else self._combination(reward_model)),
                "rule": rule,
                "rewards": dict(config.services.evaluation_rewards),
            },
        )

    def _export(self, policies: Mapping[str, Path]) -> None:
        wanted = self._config.export.policy
        name = wanted if wanted is not None else list(policies)[-1]
        if name not in policies:
            known = ", ".join(f"'{each}'" for each in policies)
            raise ConfigError(f"{self._source}: export.policy is '{name}', which is not trained here; known: {known}")
        self._add(
            "export",
            f"the policy of {name}",
            "model",
            partial(self._actions.export, policies[name], [stage.name for stage in self._stages]),
            inputs={f"policy {name}": policies[name]},
            settings={},
        )

    def _add(
        self,
        name: str,
        title: str,
        output: str,
        work: Callable[[Path, bool], None],
        *,
        inputs: Mapping[str, Path],
        settings: Mapping[str, Any],
        command: str = "",
    ) -> Path:
        """Adds a stage, whose work is given the output and whether to go on; returns where the output will be."""
        folder = self._config.run_dir / name
        stage = Stage(
            name=name,
            title=title,
            inputs=inputs,
            settings=settings,
            folder=folder,
            output=folder / output,
            work=partial(work, folder / output),
            command=command,
        )
        self._stages.append(stage)
        return stage.output

    def _add_given(self, name: str, artifact: Path) -> Path:
        stage = Stage(
            name=name,
            title="given",
            inputs={},
            settings={},
            folder=self._config.run_dir / name,
            output=artifact,
            work=lambda resume: None,
            is_given=True,
        )
        self._stages.append(stage)
        return artifact


def _output(training: Training, config: Section) -> str:
    """Returns the folder of the model that a training makes: several models in the case of an ensemble."""
    values = config.model_dump()
    is_ensemble = is_set(values, "ensemble.members") and values["ensemble"]["members"] > 1
    return ENSEMBLE if is_ensemble else f"run/{training.model}"


def _title(training: Training, config: Section) -> str:
    """Returns what a training does, in a few words."""
    if has_field(type(config), "services.reward_target"):
        return f"{config.model_dump()['training']['steps']} steps against the reward"
    return "training on the preferences" if training.learns_from_pairs else "training on demonstrations"
