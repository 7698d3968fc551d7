"""`rlhf eval`: how good the served policy is, by held-out prompts and one or more reward services."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_services.cli.inputs import load_text_tokenizer
from rlhf_services.cli.output import UsageError, print_json, print_table, stderr
from rlhf_services.cli.targets import (
    JsonOption,
    ServicesOption,
    TokenizerOption,
    resolve_target,
    run_against,
)
from rlhf_services.clients.policy import PolicyClient
from rlhf_services.local.services_file import read_services

if TYPE_CHECKING:
    from rlhf_services.trainer.evaluation.evaluate import Evaluation, MeanWithInterval


def evaluate(
    prompts: Annotated[Path, typer.Option(metavar="FILE", help='JSONL with "prompt" or "messages" on each line.')],
    policy: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The policy service.")] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A second policy service: the table has both (--policy is 'before')."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]HOST:PORT", help="A reward service; several may be given, each with a name."),
    ] = None,
    reference: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The reference service.")] = None,
    services: ServicesOption = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, max=256, help="Completions of each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a completion.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0, help="Divides the logits; 0 is greedy.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds draw equal completions from equal weights.")] = 0,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample completions of prompts, score them, and show means with 95 % intervals."""
    if temperature == 0 and samples > 1:
        raise UsageError("--temperature 0 is greedy: its samples are all equal; use --samples 1")
    policies = {"policy" if against is None else "before": resolve_target("policy", policy, services)}
    if against is not None:
        policies["after"] = against
    rewards = _rewards(reward, services)
    reference_target = resolve_target("reference", reference, services)
    evaluations = {}
    for name, target in policies.items():
        with stderr.status(f"evaluating {name} at {target}"):
            evaluations[name] = run_against(
                target,
                _evaluate(
                    target,
                    rewards,
                    reference_target,
                    prompts,
                    tokenizer,
                    samples=samples,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=seed,
                ),
            )
    _print(evaluations, as_json)


def _rewards(flags: list[str] | None, services_file: Path | None) -> dict[str, str]:
    """Returns the targets of the reward services by name: those of the flags, else of the file, else the default one.

    Raises: UsageError for two of one name.
    """
    if not flags and services_file is not None:
        found = {entry.name: entry.target for entry in read_services(services_file) if entry.kind == "reward"}
        if found:
            return found
    rewards: dict[str, str] = {}
    for flag in flags or [resolve_target("reward", None, services_file)]:
        name, _, target = flag.rpartition("=")
        name = name or "reward"
        if name in rewards:
            raise UsageError(f"--reward names '{name}' twice; give each a name of its own: --reward NAME={target}")
        rewards[name] = target
    return rewards


async def _evaluate(
    policy_target: str,
    rewards: Mapping[str, str],
    reference_target: str,
    prompts_file: Path,
    tokenizer_path: Path | None,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> "Evaluation":
    async with PolicyClient(policy_target) as policy:
        model = await policy.get_model()
    # Imported here: torch takes seconds to load, and a service that is not there should be told of before.
    from rlhf_services.models.loading import tokenizer_digest
    from rlhf_services.trainer.config import ServicesConfig
    from rlhf_services.trainer.data.prompts import load_prompts
    from rlhf_services.trainer.evaluation.evaluate import evaluate as evaluate_policy
    from rlhf_services.trainer.rollouts.peers import Peers

    tokenizer = load_text_tokenizer(tokenizer_path, model.model_name)
    items = load_prompts(prompts_file, tokenizer, max_prompt_tokens=model.max_sequence_tokens - max_new_tokens).items
    config = ServicesConfig(
        policy_targets=[policy_target], reference_target=reference_target, wait_for_services_seconds=0.0
    )
    peers = Peers(
        config, tokenizer_digest=tokenizer_digest(tokenizer), report=lambda message: None, reward_targets=rewards
    )
    async with peers:
        return await evaluate_policy(
            items,
            peers,
            lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
            samples_per_prompt=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )


def _print(evaluations: Mapping[str, "Evaluation"], as_json: bool) -> None:
    if as_json:
        for name, evaluation in evaluations.items():
            summary = {key: asdict(value) for key, value in evaluation.summary.items()}
            print_json({"name": name, "summary": summary, "dropped": evaluation.dropped})
        return
    keys = list(next(iter(evaluations.values())).summary)
    rows = [[key, *(_with_interval(each.summary.get(key)) for each in evaluations.values())] for key in keys]
    print_table(["mean ± 95 % interval", *evaluations], rows)
    for name, evaluation in evaluations.items():
        if evaluation.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in evaluation.dropped.items())
            stderr.print(f"{name}: completions left out: {reasons}", markup=False)


def _with_interval(value: "MeanWithInterval | None") -> str:
    if value is None:
        return ""
    return f"{value.mean:.3f}" if value.half_width is None else f"{value.mean:.3f} ± {value.half_width:.3f}"
