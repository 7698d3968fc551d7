"""`rlhf train ppo | grpo | rloo | reinforce++ | online-dpo`: the algorithms that sample from the policy they train."""

from collections.abc import Callable
from typing import Annotated

import typer

from rlhf.config import load_config
from rlhf_cli.commands.output import stderr
from rlhf_cli.commands.train_options import EPILOG, FIELDS, ConfigOption, FieldsOption, ResumeOption, arguments_of

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
        from services.trainer.config.online import RUN_CONFIGS

        arguments = arguments_of(config, context.args, fields)
        if wait_for_services is not None:
            arguments += ["--services.wait_for_services_seconds", str(wait_for_services)]
        prog = f"rlhf train {name}"
        run_config = load_config(RUN_CONFIGS[name], prog=prog, argv=arguments, env_prefix="RLHF_TRAINER")

        from services.trainer.server import run_online

        raise typer.Exit(run_online(run_config, resume=resume, console=stderr))

    return run
