"""`rlhf generate`, `rlhf score` and `rlhf logprobs`: ask the policy, the reward service, the reference."""

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.commands.inputs import (
    Record,
    encode_prompts,
    load_text_tokenizer,
    pair_records,
    read_records,
)
from rlhf_cli.commands.output import print_json, print_table, stderr, stdout
from rlhf_cli.commands.targets import (
    JsonOption,
    ServicesOption,
    TargetOption,
    TokenizerOption,
    resolve_target,
    run_against,
)
from rlhf_cli.errors import CommandError, UsageError, print_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf.client import Reward, RewardError, ScoreItem
    from rlhf.client.reference import LogprobsItem
    from rlhf.rollout import Rollout, Sampling

BATCH_ITEMS = 64
"""Items in one call: few, so that the progress moves."""


def generate(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What the user says; several are answered at once.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSONL with "prompt" or "messages" on each line; - is stdin.')
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a completion.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0, help="Divides the logits; 0 is greedy.")] = 1.0,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, max=256, help="Completions of each prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Makes the samples repeatable; prompt i uses seed + 256 i.")] = None,
    target: TargetOption = None,
    services: ServicesOption = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample completions from the policy service."""
    from rlhf.rollout import Sampling

    records = _records(prompt or [], file)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, completions_per_prompt=samples)
    address = resolve_target("policy", target, services)
    run_against(address, _generate(address, records, sampling, seed, tokenizer, as_json))


def _records(prompts: Sequence[str], file: Path | None) -> list[Record]:
    if bool(prompts) == (file is not None):
        raise UsageError("give prompts (\"rlhf generate 'Hello'\"), or --file with a JSONL file of them")
    if file is not None:
        return read_records(file)
    return [Record(f"prompt {number}", {"prompt": text}) for number, text in enumerate(prompts, start=1)]


async def _generate(
    address: str,
    records: Sequence[Record],
    sampling: "Sampling",
    seed: int | None,
    tokenizer_path: Path | None,
    as_json: bool,
) -> None:
    from rich.progress import Progress

    from rlhf.client.policy import PolicyClient
    from rlhf.rollout import Prompt

    async with PolicyClient(address) as policy:
        model = await policy.get_model()
        tokenizer = load_text_tokenizer(tokenizer_path, model.model_name)
        from rlhf.models.loading import tokenizer_digest

        prompts = [
            Prompt(group_id=str(index), prompt_ids=ids, seed=None if seed is None else seed + 256 * index)
            for index, ids in enumerate(encode_prompts(records, tokenizer))
        ]
        with Progress(console=stderr, transient=True, disable=len(prompts) == 1) as progress:
            bar = progress.add_task("sampling", total=len(prompts) * sampling.completions_per_prompt)
            for first in range(0, len(prompts), model.max_prompts):
                batch = prompts[first : first + model.max_prompts]
                async for rollout in policy.generate(batch, sampling, tokenizer_digest=tokenizer_digest(tokenizer)):
                    progress.advance(bar)
                    _print_rollout(rollout, records[int(rollout.group_id)], tokenizer, as_json)


def _print_rollout(rollout: "Rollout", record: Record, tokenizer: "PreTrainedTokenizerBase", as_json: bool) -> None:
    text = str(tokenizer.decode(rollout.completion_ids, skip_special_tokens=True))
    if not as_json:
        stdout.print(f"{record.value.get('prompt', record.place)}  ({rollout.rollout_id})", style="bold", markup=False)
        stdout.print(text, markup=False)
        stdout.print()
        return
    print_json(
        {
            **record.value,
            "completion": text,
            "rollout_id": rollout.rollout_id,
            "prompt_ids": rollout.prompt_ids,
            "completion_ids": rollout.completion_ids,
            "logprobs": rollout.logprobs,
            "policy_versions": rollout.policy_versions,
            "finish_reason": rollout.finish_reason,
        }
    )


def logprobs(
    prompt: Annotated[str | None, typer.Option(help="What the user said.")] = None,
    completion: Annotated[str | None, typer.Option(help="What the model answered.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSONL with "prompt" and "completion" on each line; - is stdin.')
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.01, max=10.0, help="Divides the logits.")] = 1.0,
    target: TargetOption = None,
    services: ServicesOption = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the log-probability of each token of completions under the reference."""
    records = pair_records(prompt, completion, file)
    address = resolve_target("reference", target, services)
    run_against(address, _logprobs(address, records, temperature, tokenizer, as_json))


async def _logprobs(
    address: str, records: Sequence[Record], temperature: float, tokenizer_path: Path | None, as_json: bool
) -> None:
    from rich.progress import Progress

    from rlhf.client.reference import LogprobsItem, ReferenceClient
    from rlhf.data.prompts import encode_completion

    async with ReferenceClient(address) as reference:
        model = await reference.get_model()
        tokenizer = load_text_tokenizer(tokenizer_path, model.model_name)
        from rlhf.models.loading import tokenizer_digest

        digest = tokenizer_digest(tokenizer)
        items = [
            LogprobsItem(prompt_ids, encode_completion(record.text("completion"), tokenizer), record.place)
            for record, prompt_ids in zip(records, encode_prompts(records, tokenizer), strict=True)
        ]
        max_items = min(model.max_items, BATCH_ITEMS)
        with Progress(console=stderr, transient=True, disable=len(items) <= max_items) as progress:
            bar = progress.add_task("log-probabilities", total=len(items))
            for first in range(0, len(items), max_items):
                chunk = items[first : first + max_items]
                batch = await reference.compute_logprobs(chunk, temperature=temperature, tokenizer_digest=digest)
                progress.advance(bar, len(chunk))
                for item, record, values in zip(chunk, records[first:], batch.logprobs, strict=False):
                    _print_logprobs(item, record, values, tokenizer, as_json)


def _print_logprobs(
    item: "LogprobsItem", record: Record, values: list[float], tokenizer: "PreTrainedTokenizerBase", as_json: bool
) -> None:
    if as_json:
        ids = list(item.completion_ids)
        print_json({**record.value, "completion_ids": ids, "logprobs": values, "sum_logprobs": sum(values)})
        return
    tokens = [repr(str(tokenizer.decode([each]))) for each in item.completion_ids]
    print_table(["token", "nats"], [[token, f"{value:8.3f}"] for token, value in zip(tokens, values, strict=True)])
    stdout.print(f"sum {sum(values):.3f} nats over {len(values)} tokens", style="bold")


def score(
    prompt: Annotated[str | None, typer.Option(help="What the user said.")] = None,
    completion: Annotated[str | None, typer.Option(help="What the model answered.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSONL with "prompt" and "completion" on each line; - is stdin.')
    ] = None,
    target: TargetOption = None,
    services: ServicesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score completions with the reward service."""
    from rlhf.client import ScoreItem

    records = pair_records(prompt, completion, file)
    items = [ScoreItem.text(record.text("prompt"), record.text("completion"), record.place) for record in records]
    address = resolve_target("reward", target, services)
    num_errors = run_against(address, _score(address, items, records, as_json))
    if num_errors:
        raise CommandError(f"{num_errors} of {len(items)} items have no score")


async def _score(address: str, items: Sequence["ScoreItem"], records: Sequence[Record], as_json: bool) -> int:
    """Prints each item's score; returns how many have none."""
    from rich.progress import Progress

    from rlhf.client import RewardClient, RewardError

    num_done = num_errors = 0
    async with RewardClient(address) as reward:
        with Progress(console=stderr, transient=True, disable=len(items) <= BATCH_ITEMS) as progress:
            bar = progress.add_task("scoring", total=len(items))
            async with aclosing(reward.score_batches(items, batch_items=BATCH_ITEMS)) as batches:
                async for batch in batches:
                    for result, record in zip(batch.results, records[num_done:], strict=False):
                        num_errors += isinstance(result, RewardError)
                        _print_result(result, record, batch.model_version, as_json)
                    num_done += len(batch.results)
                    progress.advance(bar, len(batch.results))
    return num_errors


def _print_result(result: "Reward | RewardError", record: Record, model_version: str, as_json: bool) -> None:
    from rlhf.client import Reward, RewardError

    if isinstance(result, RewardError):
        print_error(f"{result.item_id}: {result.code}: {result.message}")
    if as_json:
        print_json({**record.value, **_outcome(result), "model_version": model_version})
    elif isinstance(result, Reward):
        spread = "" if result.spread is None else f" ± {result.spread:.4f}"
        stdout.print(f"{result.reward:+.4f}{spread}  {record.text('completion')}", markup=False)


def _outcome(result: "Reward | RewardError") -> dict[str, object]:
    """Returns the fields of a result as JSON."""
    from rlhf.client import RewardError

    if isinstance(result, RewardError):
        return {"error": {"code": result.code, "message": result.message}}
    outcome: dict[str, object] = {"reward": result.reward}
    if result.spread is not None:
        outcome["spread"] = result.spread
    if result.components:
        outcome["components"] = {component.name: component.reward for component in result.components}
    return outcome
