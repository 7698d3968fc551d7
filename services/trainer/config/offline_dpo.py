"""Configuration of training on preferences directly: `rlhf train dpo --config FILE.toml`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf.config import Section
from services.trainer.config.offline_fit import OfflineOptimizerConfig, PolicyRunConfig
from services.trainer.config.sections import Target

USUAL_BETA = 0.1
USUAL_SIMPO_BETA = 2.0

SMOOTHED = ("sigmoid", "robust")
WITHOUT_REFERENCE = ("simpo", "orpo")
WITHOUT_NLL = ("kto", "orpo")


class DpoDataConfig(Section):
    """The preferences to learn from."""

    path: str = Field(min_length=1)
    """JSONL or Parquet file, folder of a data set, or "name" or "name:config" of one on the Hugging Face hub. Rows are
    pairs or rankings, as for reward models; for "kto" also "prompt", "completion" and "label" (true or false)."""
    split: str = "train"
    """Split of a data set."""
    max_tokens: int = Field(default=1024, ge=2)
    """Pairs of which a side, with its prompt, is longer are dropped and counted; nothing is cut."""
    heldout_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts that is kept out of training to measure the accuracy; 0 measures none."""


class DpoConfig(Section):
    """The loss. Formulas and sources: docs/training.md."""

    variant: Literal["sigmoid", "ipo", "hinge", "robust", "kto", "simpo", "orpo"] = "sigmoid"
    """"sigmoid" is DPO itself (arXiv:2305.18290)."""
    beta: float | None = Field(default=None, gt=0)
    """How strongly the policy is held to the reference; absent takes 0.1, and 2.0 for "simpo". "orpo" has none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels that are thought to be wrong, for "sigmoid" and "robust"."""
    nll_coef: float = Field(default=0.0, ge=0)
    """Weight of the chosen completion's negative log-likelihood per token, besides the loss (arXiv:2404.19733)."""
    simpo_margin: float = Field(default=1.0, ge=0)
    """By how much the implied rewards are to differ in "simpo"."""
    odds_weight: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio in "orpo"."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """Weight of good completions in "kto"."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Weight of bad completions in "kto"."""

    @property
    def beta_in_use(self) -> float:
        """The beta given, or the variant's usual one."""
        usual = USUAL_SIMPO_BETA if self.variant == "simpo" else USUAL_BETA
        return usual if self.beta is None else self.beta

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under the reference are part of the loss."""
        return self.variant not in WITHOUT_REFERENCE

    @model_validator(mode="after")
    def _fields_fit_the_variant(self) -> Self:
        if self.label_smoothing > 0 and self.variant not in SMOOTHED:
            raise ValueError(
                f"dpo.label_smoothing is {self.label_smoothing}, but dpo.variant '{self.variant}' has none; set it to "
                f"0, or take one of {', '.join(SMOOTHED)}"
            )
        if self.nll_coef > 0 and self.variant in WITHOUT_NLL:
            raise ValueError(
                f"dpo.nll_coef is {self.nll_coef}, but dpo.variant '{self.variant}' takes no such term; set it to 0"
            )
        return self


class DpoReferenceConfig(Section):
    """Where the reference's log-probabilities come from. They are computed once and kept beside the data."""

    target: Target = "localhost:50053"
    """"host:port" of the reference service, which serves the model that training starts from."""
    version: str = ""
    """Take kept log-probabilities of this reference version without calling the service; empty asks the service."""
    wait_seconds: float = Field(default=300.0, ge=0)
    """How long the service may be away before the run ends with an error."""
    deadline_seconds: float = Field(default=600.0, gt=0)
    """Longest time for one call."""
    items_per_call: int = Field(default=64, ge=1)
    """Completions sent in one call."""


class DpoOptimizerConfig(OfflineOptimizerConfig):
    """AdamW with linear warm-up and linear decay."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""


class DpoRunConfig(PolicyRunConfig):
    """A training on preferences."""

    data: DpoDataConfig
    dpo: DpoConfig = DpoConfig()
    reference: DpoReferenceConfig = DpoReferenceConfig()
    optimizer: DpoOptimizerConfig = DpoOptimizerConfig()
