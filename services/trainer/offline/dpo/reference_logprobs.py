"""Log-probabilities under the reference: computed once by the reference service, and kept beside the data.

The file's name has the digests of what it is of, so data or a reference that changed never meets an old one:

    <data>.reference-<completions>-<reference version>.safetensors     logps: [N] float64, nats of whole completions
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from blake3 import blake3
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf.client.patience import Patience
from rlhf.client.reference import LogprobsItem, ReferenceClient, ReferenceModel
from rlhf.errors import ConfigError, RunError
from rlhf.files import whole
from services.trainer.config.offline import DpoServicesConfig
from services.trainer.telemetry.terminal import say

T = TypeVar("T")
Ids = tuple[int, ...]
FORMAT_VERSION = "1"
NAME_DIGITS = 12
"""Digits of each digest in the file's name; the whole ones are inside."""
CALLS_AT_ONCE = 2
"""One is computed while the next one travels."""


class PromptedCompletion(NamedTuple):
    """A completion whose log-probability is wanted."""

    prompt_ids: Ids
    completion_ids: Ids


class ReferenceLogprobs:
    """Gives the reference's log-probabilities of completions, from the kept file or from the service."""

    def __init__(
        self, config: DpoServicesConfig, *, tokenizer_digest: str, data_path: str, run_dir: Path, console: Console
    ) -> None:
        """Args: the folder of the data is where files are kept; run_dir if there is none, or it cannot be written."""
        self._config = config
        self._target = config.reference_target
        self._tokenizer_digest = tokenizer_digest
        self._console = console
        data = Path(data_path)
        self._stem = data.name.replace(":", "-")
        self._folders = [data.parent, run_dir] if data.exists() else [run_dir]

    def logps(self, completions: Sequence[PromptedCompletion]) -> list[float]:
        """Returns the log-probability of each completion: the sum over its tokens, in nats.

        Raises: ConfigError if the service has another tokenizer or takes no such long completions, or the version that
            was asked for is not kept; NotReadyError if the service stays away; RunError if the file cannot be written.
        """
        return asyncio.run(self._logps(completions))

    async def _logps(self, completions: Sequence[PromptedCompletion]) -> list[float]:
        digest = blake3("".join(map(repr, completions)).encode()).hexdigest()
        if self._config.reference_version:
            kept = self._find(digest, self._config.reference_version)
            if kept is None:
                raise ConfigError(
                    f"services.reference_version is '{self._config.reference_version}': no log-probabilities of it are "
                    f"kept for these data in {' or '.join(map(str, self._folders))}; leave it out, so that the "
                    "service is asked"
                )
            return kept
        async with ReferenceClient(self._target) as client:
            model = await self._call(client, client.get_model)
            self._require_fitting(model, completions)
            kept = self._find(digest, model.reference_version)
            if kept is not None:
                return kept
            logps = await self._compute(client, model, completions)
        self._keep(digest, model.reference_version, logps)
        return logps

    def _require_fitting(self, model: ReferenceModel, completions: Sequence[PromptedCompletion]) -> None:
        if model.tokenizer_digest != self._tokenizer_digest:
            raise ConfigError(
                f"reference service at {self._target} has tokenizer {model.tokenizer_digest[:12]}, the trained "
                f"policy has {self._tokenizer_digest[:12]}: token ids would mean different things; start the service "
                "with the policy's model"
            )
        longest = max(len(each.prompt_ids) + len(each.completion_ids) for each in completions)
        if 0 < model.max_sequence_tokens < longest:
            raise ConfigError(
                f"reference service at {self._target} takes at most {model.max_sequence_tokens} tokens, the "
                f"data have a completion of {longest} with its prompt; lower data.max_tokens"
            )

    async def _compute(
        self, client: ReferenceClient, model: ReferenceModel, completions: Sequence[PromptedCompletion]
    ) -> list[float]:
        limit = self._config.reference_items_per_call
        size = min(limit, model.max_items) if model.max_items > 0 else limit
        # Neighbours in length keep the service's batches even.
        order = sorted(range(len(completions)), key=lambda index: -len(completions[index].completion_ids))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        logps = [0.0] * len(completions)
        free = asyncio.Semaphore(CALLS_AT_ONCE)
        with Progress(console=self._console, disable=not self._console.is_terminal) as progress:
            bar = progress.add_task("reference log-probabilities", total=len(completions))

            async def compute(batch: Sequence[int]) -> None:
                items = [LogprobsItem(completions[i].prompt_ids, completions[i].completion_ids) for i in batch]
                async with free:
                    answer = await self._call(
                        client,
                        lambda: client.compute_logprobs(
                            items,
                            tokenizer_digest=self._tokenizer_digest,
                            deadline_seconds=self._config.reference_deadline_seconds,
                        ),
                    )
                if answer.reference_version != model.reference_version:
                    raise RunError(
                        f"reference service at {self._target} changed from version "
                        f"{model.reference_version[:12]} to {answer.reference_version[:12]} meanwhile; start again"
                    )
                for index, row in zip(batch, answer.logprobs, strict=True):
                    logps[index] = math.fsum(row)
                progress.update(bar, advance=len(batch))

            await asyncio.gather(*(compute(batch) for batch in batches))
        return logps

    async def _call(self, client: ReferenceClient, call: Callable[[], Awaitable[T]]) -> T:
        patience = Patience(
            wait_seconds=self._config.wait_for_services_seconds,
            remedy="start it again, then continue with --resume",
            on_wait=lambda _, message: say(self._console, message),
        )
        return await patience.ask(client, call)

    def _find(self, digest: str, version: str) -> list[float] | None:
        """Returns what is kept for these completions under this version; None if nothing whole is."""
        for folder in self._folders:
            path = folder / self._name(digest, version)
            if path.is_file():
                logps = _read(path, self._metadata(digest, version))
                if logps is not None:
                    say(self._console, f"reference log-probabilities of {len(logps)} completions: taken from {path}")
                    return logps
                say(self._console, f"{path} is damaged; the log-probabilities are computed again")
        return None

    def _keep(self, digest: str, version: str, logps: Sequence[float]) -> None:
        tensors = {"logps": torch.tensor(logps, dtype=torch.float64)}
        reason: OSError | SafetensorError | None = None
        for folder in self._folders:
            path = folder / self._name(digest, version)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with whole(path) as partial:
                    save_file(tensors, partial, metadata=self._metadata(digest, version))
            except (OSError, SafetensorError) as error:
                reason = error
                continue
            say(self._console, f"reference log-probabilities of {len(logps)} completions: kept in {path}")
            return
        raise RunError(f"the reference's log-probabilities could not be kept in {self._folders[-1]}: {reason}")

    def _name(self, digest: str, version: str) -> str:
        # A version may be any text; as part of a name it is digested.
        short = blake3(version.encode()).hexdigest()[:NAME_DIGITS]
        return f"{self._stem}.reference-{digest[:NAME_DIGITS]}-{short}.safetensors"

    def _metadata(self, digest: str, version: str) -> dict[str, str]:
        return {
            "format_version": FORMAT_VERSION,
            "completions_digest": digest,
            "reference_version": version,
            "tokenizer_digest": self._tokenizer_digest,
        }


def _read(path: Path, metadata: dict[str, str]) -> list[float] | None:
    """Returns the log-probabilities of a file with this metadata, None if it is another's or damaged."""
    try:
        with safe_open(path, framework="pt") as reader:
            if reader.metadata() != metadata:
                return None
            tensor: Tensor = reader.get_tensor("logps")
            return list(tensor.tolist())
    except (OSError, SafetensorError):
        return None
