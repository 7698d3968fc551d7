"""Configuration of a pipeline: `rlhf pipeline run FILE.toml`. The tables of trainings are those of `rlhf train`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from rlhf.config import Section
from rlhf_cli.pipeline.labelling import NOISE_RATE, SHORT_AND_FINISHED
from services.trainer.config.sections import SamplingConfig, Target
from services.trainer.trainings import TRAININGS

TrainingTable = dict[str, Any]
"""The fields of a training, as `rlhf train ... --fields` lists them; and `enabled`, `artifact`, which are ours."""


class PipelinePromptsConfig(Section):
    """The prompts."""

    path: Path
    """JSONL of training prompts: "prompt" or "messages" on each line."""
    heldout_path: Path | None = None
    """JSONL of prompts for the evaluation alone; required unless evaluate.enabled is false."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts, after the chat template, are left out and counted."""


class PipelineServicesConfig(Section):
    """Where services run. Those without an address are started on this machine for the stages that need them."""

    policy_targets: tuple[Target, ...] = ()
    """Policy services, one "host:port" for each replica. What a stage needs is pushed into them."""
    reward_target: Target | None = None
    """Reward service of the policy's training; absent: the reward model of this pipeline."""
    reference_target: Target | None = None
    """Reference service; it must serve the model that the policy's training starts from."""
    evaluation_rewards: dict[str, Target] = Field(default_factory=dict)
    """Further reward services or judges, by name, that the evaluation asks and that no training sees."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """What samples in a policy service that is started here."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of the models in services that are started here."""
    reward_combine: Literal["mean", "worst", "mean_minus_std"] = "mean"
    """How the members of an ensemble of reward models (reward_model.ensemble.members) make one reward."""
    reward_std_coef: float = Field(default=1.0, ge=0)
    """mean_minus_std: what a standard deviation of the members' disagreement costs."""
    keep: bool = False
    """Keep what was started here for the next stages, to the end of the pipeline. Saves the seconds of loading, and
    needs the memory of all of them at once."""
    start_timeout_seconds: float = Field(default=600.0, gt=0)
    """How long a service may take to load."""
    wait_for_services_seconds: float = Field(default=300.0, ge=0)
    """How long a service may be away before a stage fails."""


class StageConfig(Section):
    """Whether a stage is done."""

    enabled: bool = True
    """false leaves the stage out."""
    artifact: Path | None = None
    """What the stage would make, if it is there already; the stage is then left out."""


class SampleConfig(StageConfig):
    """Sampling of completions to be labelled. The artifact is a JSONL file as this stage writes it."""

    completions_per_prompt: int = Field(default=4, ge=2, le=256)
    max_prompts: int | None = Field(default=None, ge=1)
    """Only the first so many prompts; absent: all."""
    seed: int = Field(default=0, ge=0)


class LabelConfig(StageConfig):
    """The preferences. The artifact is a JSONL file of them; without one the simulated labeller chooses.

    The simulated labeller prefers completions in which the pattern is found, and errs at a known rate
    (rlhf_cli/pipeline/labelling.py); a reward service of its rule, "true", then joins the evaluation.
    """

    pattern: str = Field(default=SHORT_AND_FINISHED, min_length=1)
    """Regular expression of what it likes; the default is a short, finished answer."""
    noise_rate: Annotated[float, Field(ge=0, lt=0.5)] = NOISE_RATE
    """Probability that it names the other completion instead."""
    seed: int = Field(default=0, ge=0)


class EvaluateConfig(Section):
    """The comparison of the start and every trained policy on the held-out prompts."""

    enabled: bool = True
    """false leaves the stage out."""
    samples_per_prompt: int = Field(default=2, ge=1, le=256)
    max_prompts: int | None = Field(default=None, ge=1)
    """Only the first so many prompts; absent: all."""
    seed: int = Field(default=0, ge=0)


class ExportConfig(Section):
    """The trained policy as a folder of its own, with its lineage."""

    enabled: bool = True
    """false leaves the stage out."""
    policy: str | None = None
    """Which policy, by its table ("ppo"); absent: the last of those trained."""


def _with_training_tables() -> type[Section]:
    """Returns a section with a field for each kind of training: of policies any number, each from the same start."""
    fields: dict[str, Any] = {
        each.stage: (TrainingTable | None, Field(default=None, description=f"`rlhf train {each.name}`; absent: none."))
        for each in TRAININGS.values()
    }
    return create_model("TrainingTables", __base__=Section, **fields)


class PipelineConfig(_with_training_tables()):  # type: ignore[misc]
    """From a base model to an aligned one, stage by stage."""

    run_dir: Path
    """Where everything is written."""
    model: Path
    """Hugging Face checkpoint that the pipeline starts from, with its tokenizer and chat template."""
    prompts: PipelinePromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    """Of all completions: those to be labelled, those of the policy's training, and the evaluation's."""
    services: PipelineServicesConfig = PipelineServicesConfig()
    sample: SampleConfig = SampleConfig()
    label: LabelConfig = LabelConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()

    def table(self, name: str) -> TrainingTable | None:
        """Returns the table of a training, by its name in the file; None if it is absent or `enabled = false`."""
        table: TrainingTable | None = getattr(self, name)
        return None if table is None or table.get("enabled") is False else table

    @model_validator(mode="after")
    def _has_heldout_prompts(self) -> Self:
        if self.evaluate.enabled and self.prompts.heldout_path is None:
            raise ValueError(
                "prompts.heldout_path is missing: name a file of prompts for the evaluation, "
                "or set evaluate.enabled = false"
            )
        return self
