"""`rlhf logprobs`: asks the reference service how probable completions are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from rlhf.client.reference import LogprobsItem, ReferenceClient
from rlhf_cli.commands.inputs import Record, encode_completion, encode_prompts, load_text_tokenizer, pair_records
from rlhf_cli.commands.output import print_json, print_table, stderr, stdout
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
    async with ReferenceClient(address) as reference:
        model = await reference.get_model()
        tokenizer = load_text_tokenizer(tokenizer_path, model.model_name)
        from rlhf.models.loading import tokenizer_digest

        digest = tokenizer_digest(tokenizer)
        items = [
            LogprobsItem(prompt_ids, encode_completion(record.text("completion"), tokenizer), record.place)
            for record, prompt_ids in zip(records, encode_prompts(records, tokenizer), strict=True)
        ]
        max_items = min(model.max_items, 64)  # small calls, so that the progress moves
        with Progress(console=stderr, transient=True, disable=len(items) <= max_items) as progress:
            bar = progress.add_task("log-probabilities", total=len(items))
            for first in range(0, len(items), max_items):
                chunk = items[first : first + max_items]
                batch = await reference.compute_logprobs(chunk, temperature=temperature, tokenizer_digest=digest)
                progress.advance(bar, len(chunk))
                for item, record, values in zip(chunk, records[first:], batch.logprobs, strict=False):
                    _print_logprobs(item, record, values, tokenizer, as_json)


def _print_logprobs(
    item: LogprobsItem, record: Record, values: list[float], tokenizer: "PreTrainedTokenizerBase", as_json: bool
) -> None:
    if as_json:
        ids = list(item.completion_ids)
        print_json({**record.value, "completion_ids": ids, "logprobs": values, "sum_logprobs": sum(values)})
        return
    tokens = [repr(str(tokenizer.decode([each]))) for each in item.completion_ids]
    print_table(["token", "nats"], [[token, f"{value:8.3f}"] for token, value in zip(tokens, values, strict=True)])
    stdout.print(f"sum {sum(values):.3f} nats over {len(values)} tokens", style="bold")
