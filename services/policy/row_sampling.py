"""One batch of the transformers engine, row by row: what a row holds, and how its next token is drawn."""

from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from services.policy.engine import Completion, SampleParams


class Row:
    """A request in the batch: its ids so far, and where the answer goes."""

    def __init__(self, prompt_ids: list[int], params: SampleParams) -> None:
        self.ids = list(prompt_ids)
        self.params = params
        self.done: Future[Completion] = Future()
        self.cancelled = False
        """Set by the thread that waits for the answer; the batch drops the row before its next token."""
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self._num_prompt_ids = len(prompt_ids)
        self._logprobs: list[float] = []
        self._policy_versions: list[int] = []

    def append(self, token: int, logprob: float, policy_version: int) -> None:
        """Takes the next token."""
        self.ids.append(token)
        self._logprobs.append(logprob)
        self._policy_versions.append(policy_version)

    def finish_if_ended(self) -> None:
        """Answers the request if its last token is a stop id, or the last that it asked for."""
        stopped = self.ids[-1] in self.params.stop_ids
        if self.done.done() or not (stopped or len(self._logprobs) == self.params.max_new_tokens):
            return
        self.done.set_result(
            Completion(
                completion_ids=self.ids[self._num_prompt_ids :],
                logprobs=self._logprobs,
                policy_versions=self._policy_versions,
                finish_reason="stop" if stopped else "length",
            )
        )


def pad_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns token ids [B, L], padded on the left with 0, and the attention mask [B, L], 1 at tokens."""
    length = max(map(len, sequences))
    ids = [[0] * (length - len(sequence)) + list(sequence) for sequence in sequences]
    mask = [[0] * (length - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def sample_next(rows: Sequence[Row], logits: Tensor, policy_version: int) -> None:
    """Draws the next token of each row and appends it with its log-probability.

    Args:
        rows: B of them.
        logits: [B, V] float32, before temperature.
        policy_version: of the weights that gave the logits.
    """
    temperatures = torch.tensor([row.params.temperature or 1.0 for row in rows], device=logits.device)
    logprobs = torch.log_softmax(logits / temperatures[:, None], dim=-1).cpu()
    for row, row_logprobs in zip(rows, logprobs, strict=True):
        if row.params.temperature == 0:
            token = int(row_logprobs.argmax())
        else:
            token = int(torch.multinomial(row_logprobs.exp(), 1, generator=row.generator))
        row.append(token, float(row_logprobs[token]), policy_version)
