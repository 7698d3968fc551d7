"""`rlhf train`: fine-tuning, reward models, preference optimisation; the online algorithms are in train_online.py."""

import typer

from rlhf.config import load_config
from rlhf_cli.commands import train_online
from rlhf_cli.commands.output import stderr
from rlhf_cli.commands.train_options import EPILOG, FIELDS, ConfigOption, FieldsOption, ResumeOption, arguments_of

app = typer.Typer(no_args_is_help=True, help="Train a policy or a reward model.")
train_online.register(app)


@app.command("reward-model", context_settings=FIELDS, epilog=EPILOG.format(example="--training.epochs 2"))
def reward_model(
    context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
) -> None:
    """Train a reward model, or an ensemble, on pairs or rankings, and save what rlhf-reward serves."""
    from services.trainer.config.offline_reward_model import RewardModelRunConfig

    run_config = load_config(
        RewardModelRunConfig,
        prog="rlhf train reward-model",
        argv=arguments_of(config, context.args, fields),
        env_prefix="RLHF_REWARD_MODEL",
    )

    from transformers.utils.logging import disable_progress_bar

    from rlhf.run_errors import StoppedError
    from services.trainer.offline.reward_model.train import run_reward_model

    disable_progress_bar()  # every model that is loaded or written would show one
    try:
        run_reward_model(run_config, resume=resume, console=stderr)
    except StoppedError as stopped:
        raise typer.Exit(stopped.exit_code) from None


@app.command("sft", context_settings=FIELDS, epilog=EPILOG.format(example="--training.epochs 2"))
def sft(
    context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
) -> None:
    """Fine-tune a policy on conversations or on prompts with completions."""
    from services.trainer.config.offline_sft import SftRunConfig

    arguments = arguments_of(config, context.args, fields)
    run_config = load_config(SftRunConfig, prog="rlhf train sft", argv=arguments, env_prefix="RLHF_SFT")

    from services.trainer.offline.sft import run_sft

    raise typer.Exit(run_sft(run_config, resume=resume, console=stderr))


@app.command("dpo", context_settings=FIELDS, epilog=EPILOG.format(example="--dpo.variant ipo"))
def dpo(
    context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
) -> None:
    """Train a policy on preference pairs directly: DPO and its relatives."""
    from services.trainer.config.offline_dpo import DpoRunConfig

    arguments = arguments_of(config, context.args, fields)
    run_config = load_config(DpoRunConfig, prog="rlhf train dpo", argv=arguments, env_prefix="RLHF_DPO")

    from services.trainer.offline.dpo.train import run_dpo

    raise typer.Exit(run_dpo(run_config, resume=resume, console=stderr))
