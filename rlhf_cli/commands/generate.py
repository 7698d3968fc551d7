"""`rlhf generate`: samples completions from a policy service."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from rlhf.client.policy import PolicyClient
from rlhf.rollout import Prompt, Rollout, Sampling
from rlhf_cli.commands.inputs import Record, encode_prompts, load_text_tokenizer, read_records
from rlhf_cli.commands.output import UsageError, print_json, stderr, stdout
from rlhf_cli.commands.targets import (
    JsonOption,
    ServicesOption,
    TargetOption,
    TokenizerOption,
    resolve_target,
    run_against,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    sampling: Sampling,
    seed: int | None,
    tokenizer_path: Path | None,
    as_json: bool,
) -> None:
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


def _print_rollout(rollout: Rollout, record: Record, tokenizer: "PreTrainedTokenizerBase", as_json: bool) -> None:
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
