"""`rlhf train`: one command for each algorithm."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_cli.commands.output import stderr
from rlhf_cli.errors import UsageError

# Everything that is not an option of the command is a field of the configuration: --training.steps 30.
FIELDS: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
EPILOG = "Every field of the configuration is a flag too, such as {example}; --fields lists them all."

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file with the configuration.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")]
FieldsOption = Annotated[bool, typer.Option("--fields", help="List every field of the configuration, and exit.")]


def arguments_of(config: Path | None, rest: Sequence[str], fields: bool) -> list[str]:
    """Returns the command line as load_config takes it."""
    stray = next((each for each in rest[:1] if not each.startswith("--")), None)
    if stray is not None:
        raise UsageError(
            f"unexpected argument '{stray}'; fields of the configuration are given as --section.field VALUE"
        )
    arguments = ["--help"] if fields else list(rest)
    return arguments if config is None else ["--config", str(config), *arguments]


COMMANDS = {
    "ppo": "Train the policy against the reward service with PPO: a critic, and a KL penalty to the reference.",
    "grpo": "Train the policy with GRPO: completions of one prompt against one another, in their own spread.",
    "rloo": "Train the policy with RLOO: each completion against the mean of the prompt's others.",
    "reinforce++": "Train the policy with REINFORCE++: returns whitened over the batch, without a critic.",
    "online-dpo": "Train the policy with DPO on pairs that it samples and the reward service judges.",
}

WaitOption = Annotated[
    float | None,
    typer.Option(min=0, metavar="SECONDS", help="How long a service may be away before the run ends with an error."),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for name, text in COMMANDS.items():
        epilog = EPILOG.format(example="--training.steps 30")
        app.command(name, help=text, context_settings=FIELDS, epilog=epilog)(_command(name))


def _command(name: str) -> Callable[..., None]:
    def run(
        context: typer.Context,
        config: ConfigOption = None,
        resume: ResumeOption = False,
        wait_for_services: WaitOption = None,
        fields: FieldsOption = False,
    ) -> None:
        from rlhf.config import load_config
        from services.trainer.config.online import RUN_CONFIGS

        arguments = arguments_of(config, context.args, fields)
        if wait_for_services is not None:
            arguments += ["--services.wait_for_services_seconds", str(wait_for_services)]
        prog = f"rlhf train {name}"
        run_config = load_config(RUN_CONFIGS[name], prog=prog, argv=arguments, env_prefix="RLHF_TRAINER")

        from services.trainer.server import run_online

        raise typer.Exit(run_online(run_config, resume=resume, console=stderr))

    return run


app = typer.Typer(no_args_is_help=True, help="Train a policy or a reward model.")
register(app)


@app.command("reward-model", context_settings=FIELDS, epilog=EPILOG.format(example="--training.epochs 2"))
def reward_model(
    context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
) -> None:
    """Train a reward model, or an ensemble, on pairs or rankings, and save what rlhf-reward serves."""
    from rlhf.config import load_config
    from services.trainer.config.offline import RewardModelRunConfig

    run_config = load_config(
        RewardModelRunConfig,
        prog="rlhf train reward-model",
        argv=arguments_of(config, context.args, fields),
        env_prefix="RLHF_REWARD_MODEL",
    )

    from transformers.utils.logging import disable_progress_bar

    from rlhf.errors import StoppedError
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
    from rlhf.config import load_config
    from services.trainer.config.offline import SftRunConfig

    arguments = arguments_of(config, context.args, fields)
    run_config = load_config(SftRunConfig, prog="rlhf train sft", argv=arguments, env_prefix="RLHF_SFT")

    from services.trainer.offline.sft import run_sft

    raise typer.Exit(run_sft(run_config, resume=resume, console=stderr))


@app.command("dpo", context_settings=FIELDS, epilog=EPILOG.format(example="--dpo.variant ipo"))
def dpo(
    context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
) -> None:
    """Train a policy on preference pairs directly: DPO and its relatives."""
    from rlhf.config import load_config
    from services.trainer.config.offline import DpoRunConfig

    arguments = arguments_of(config, context.args, fields)
    run_config = load_config(DpoRunConfig, prog="rlhf train dpo", argv=arguments, env_prefix="RLHF_DPO")

    from services.trainer.offline.dpo.train import run_dpo

    raise typer.Exit(run_dpo(run_config, resume=resume, console=stderr))
