"""What `rlhf demo` can be told, and what it writes where."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """How to run the demo. The defaults take about a quarter of an hour on 2 slow cores and show a clear effect."""

    run_dir: Path
    """Where everything is written; must be empty or not exist."""
    model: Path | None = None
    """Checkpoint to start from; None fetches the small model."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """What samples in the policy service."""
    seed: int = 0
    max_new_tokens: int = 32
    """Most tokens of a completion."""
    temperature: float = 0.8
    """Of all sampling. Below 1 a small model writes sense more often, and is still far from repeating itself."""
    pair_prompts: int = 220
    """Training prompts for which completions are sampled and labelled in pairs."""
    heldout_prompts: int = 64
    eval_samples: int = 4
    """Completions of each held-out prompt, before and after."""
    steps: int = 28
    """PPO steps."""
    prompts_per_step: int = 24
    policy_learning_rate: float = 2.5e-5
    critic_learning_rate: float = 3e-5
    reward_learning_rate: float = 1e-4
    kl_coef: float = 0.03
    wait_for_services_seconds: float = 300.0

    def quick(self) -> "DemoOptions":
        """Returns a demo of a few minutes that shows every part, and no clear effect."""
        return replace(self, pair_prompts=64, heldout_prompts=8, eval_samples=2, steps=3, prompts_per_step=16)

    @property
    def services_file(self) -> Path:
        """Where the services are."""
        return self.run_dir / "services.toml"

    @property
    def pairs_file(self) -> Path:
        """The labelled pairs."""
        return self.run_dir / "pairs.jsonl"

    @property
    def reward_run_dir(self) -> Path:
        """The reward model's training."""
        return self.run_dir / "reward_model"

    @property
    def reward_model(self) -> Path:
        """The trained reward model."""
        return self.reward_run_dir / "model"

    @property
    def ppo_run_dir(self) -> Path:
        """The PPO run."""
        return self.run_dir / "ppo"

    @property
    def final_checkpoint(self) -> Path:
        """The policy after PPO, as a Hugging Face checkpoint."""
        return self.ppo_run_dir / "final"

    @property
    def report_file(self) -> Path:
        """The HTML report."""
        return self.run_dir / "report.html"

    @property
    def results_file(self) -> Path:
        """The results as JSON."""
        return self.run_dir / "results.json"
