"""The configuration files of the demo's two trainings: as a user would write them, and kept for reading and reuse."""

from pathlib import Path

from rlhf_cli.demo.make_prompts import DATA_FOLDER
from rlhf_cli.demo.options import DemoOptions
from rlhf_cli.local.services_file import ServiceEntry
from services.trainer.config.offline import (
    PreferencesConfig,
    RewardModelBaseConfig,
    RewardModelOptimizerConfig,
    RewardModelRunConfig,
    TrainingConfig,
)
from services.trainer.config.online import PpoRunConfig
from services.trainer.config.online_sections import (
    CriticConfig,
    CriticOptimizerConfig,
    KlConfig,
    ModelsConfig,
    OnlineTrainingConfig,
)
from services.trainer.config.sections import (
    CheckpointConfig,
    OptimizerConfig,
    PromptsConfig,
    SamplingConfig,
    ServicesConfig,
)

TRAIN_PROMPTS = DATA_FOLDER / "train.jsonl"
HELDOUT_PROMPTS = DATA_FOLDER / "heldout.jsonl"
MAX_PROMPT_TOKENS = 256


def reward_model_config(options: DemoOptions, model: Path) -> RewardModelRunConfig:
    """Returns the configuration of the reward model's training."""
    return RewardModelRunConfig(
        run_dir=options.reward_run_dir,
        model=RewardModelBaseConfig(path=model),
        data=PreferencesConfig(path=options.pairs_file, heldout_fraction=0.15),
        training=TrainingConfig(epochs=1, examples_per_step=16, seed=options.seed),
        optimizer=RewardModelOptimizerConfig(learning_rate=options.reward_learning_rate, warmup_steps=3),
    )


def ppo_config(
    options: DemoOptions, model: Path, *, policy: ServiceEntry, reward: ServiceEntry, reference: ServiceEntry
) -> PpoRunConfig:
    """Returns the configuration of the PPO run."""
    return PpoRunConfig(
        run_dir=options.ppo_run_dir,
        models=ModelsConfig(policy_path=model),
        critic=CriticConfig(path=options.reward_model),
        prompts=PromptsConfig(path=TRAIN_PROMPTS, max_prompt_tokens=MAX_PROMPT_TOKENS),
        services=ServicesConfig(
            policy_targets=[policy.target],
            reward_target=reward.target,
            reference_target=reference.target,
            wait_for_services_seconds=options.wait_for_services_seconds,
        ),
        sampling=SamplingConfig(max_new_tokens=options.max_new_tokens, temperature=options.temperature),
        training=OnlineTrainingConfig(
            steps=options.steps, prompts_per_step=options.prompts_per_step, seed=options.seed
        ),
        kl=KlConfig(coef=options.kl_coef),
        policy_optimizer=OptimizerConfig(
            learning_rate=options.policy_learning_rate, warmup_steps=2, final_learning_rate_fraction=0.2
        ),
        critic_optimizer=CriticOptimizerConfig(
            learning_rate=options.critic_learning_rate, warmup_steps=2, final_learning_rate_fraction=0.2
        ),
        # One is written when the run is stopped; more would cost seconds each for a run of minutes.
        checkpoint=CheckpointConfig(every_steps=0),
    )
