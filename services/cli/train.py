"""`rlhf train`: reward-model training and PPO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rlhf_services.cli.output import UsageError, stderr
from rlhf_services.common.config import load_config

app = typer.Typer(no_args_is_help=True, help="Train a reward model, or a policy with PPO.")

# Everything that is not an option of the command is a field of the configuration: --training.steps 30.
_FIELDS = {"allow_extra_args": True, "ignore_unknown_options": True}
_EPILOG = "Every field of the configuration is a flag too, such as {example}; --fields lists them all."

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file with the configuration.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")]
FieldsOption = Annotated[bool, typer.Option("--fields", help="List every field of the configuration, and exit.")]


@app.command("ppo", context_settings=_FIELDS, epilog=_EPILOG.format(example="--training.steps 30"))
def ppo(
    context: typer.Context,
    config: ConfigOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    wait_for_services: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="How long a service may be away before the run ends with an error."
        ),
    ] = None,
    fields: FieldsOption = False,
) -> None:
    """Train the policy against the reward service, pushing new weights to the policy service after every step."""
    from rlhf_services.trainer.online_config import PpoRunConfig

    arguments = _arguments(config, context.args, fields)
    if wait_for_services is not None:
        arguments += ["--services.wait_for_services_seconds", str(wait_for_services)]
    run_config = load_config(PpoRunConfig, prog="rlhf train ppo", argv=arguments, env_prefix="RLHF_TRAINER")

    from rlhf_services.trainer.server import run_ppo

    exit_code = run_ppo(run_config, resume=resume, console=stderr)
    raise typer.Exit(exit_code)


@app.command("reward-model", context_settings=_FIELDS, epilog=_EPILOG.format(example="--training.epochs 2"))
def reward_model(
    context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
) -> None:
    """Train a reward model, or an ensemble, on pairs or rankings, and save what rlhf-reward serves."""
    from rlhf_services.trainer.offline.reward_model_config import RewardModelRunConfig

    run_config = load_config(
        RewardModelRunConfig,
        prog="rlhf train reward-model",
        argv=_arguments(config, context.args, fields),
        env_prefix="RLHF_REWARD_MODEL",
    )

    from rlhf_services.trainer.offline.reward_model import run_reward_model

    run_reward_model(run_config, resume=resume, console=stderr)


@app.command("sft", context_settings=_FIELDS, epilog=_EPILOG.format(example="--training.epochs 2"))
def sft(
    context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
) -> None:
    """Fine-tune a policy on conversations or on prompts with completions."""
    from rlhf_services.trainer.offline.sft_config import SftRunConfig

    arguments = _arguments(config, context.args, fields)
    run_config = load_config(SftRunConfig, prog="rlhf train sft", argv=arguments, env_prefix="RLHF_SFT")

    from rlhf_services.trainer.offline.sft import run_sft

    raise typer.Exit(run_sft(run_config, resume=resume, console=stderr))


@app.command("dpo", context_settings=_FIELDS, epilog=_EPILOG.format(example="--dpo.variant ipo"))
def dpo(
    context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
) -> None:
    """Train a policy on preference pairs directly: DPO and its relatives."""
    from rlhf_services.trainer.offline.dpo_config import DpoRunConfig

    arguments = _arguments(config, context.args, fields)
    run_config = load_config(DpoRunConfig, prog="rlhf train dpo", argv=arguments, env_prefix="RLHF_DPO")

    from rlhf_services.trainer.offline.dpo import run_dpo

    raise typer.Exit(run_dpo(run_config, resume=resume, console=stderr))


def _arguments(config: Path | None, rest: Sequence[str], fields: bool) -> list[str]:
    """Returns the command line as load_config takes it."""
    stray = next((each for each in rest[:1] if not each.startswith("--")), None)
    if stray is not None:
        raise UsageError(
            f"unexpected argument '{stray}'; fields of the configuration are given as --section.field VALUE"
        )
    arguments = ["--help"] if fields else list(rest)
    return arguments if config is None else ["--config", str(config), *arguments]
