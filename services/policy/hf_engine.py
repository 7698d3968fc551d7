"""The transformers engine: samples rows side by side in one batch, for tests and machines without vLLM."""

import asyncio
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlhf.errors import FatalError, InvalidRequestError, NotReadyError
from rlhf.models.loading import load_policy, resolve_device
from rlhf.models.weights import load_tensors, map_tensors
from services.policy.config import PolicyConfig
from services.policy.engine import Completion, EngineInfo, SampleParams
from services.policy.model_facts import read_engine_info
from services.policy.vllm.liveness import RESTART
from services.policy.weights.staged import StagedPatch, StagedWeights


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


class HfEngine:
    """Implements engine.Engine."""

    info: EngineInfo

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config.model
        self._keep_copy = config.limits.takes_patches
        self._max_num_seqs = config.transformers.max_num_seqs
        self._model: PreTrainedModel
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hf-engine")
        self._loop_done: Future[None] | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = False
        self._version = 0
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._cache: DynamicCache | None = None
        self._attention_mask: torch.Tensor

    async def start(self) -> None:
        """Loads the model and begins the loop."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        self._loop_done = self._thread.submit(self._run)

    async def generate(self, prompt_ids: list[int], params: SampleParams, request_id: str) -> Completion:
        """Samples one completion; see Engine.generate."""
        row = Row(prompt_ids, params)
        self._send(lambda: self._waiting.append(row))
        try:
            return await asyncio.wrap_future(row.done)
        finally:
            row.cancelled = True

    async def update_weights(self, staged: StagedWeights | StagedPatch) -> float:
        """Swaps between two tokens; see Engine.update_weights."""
        done: Future[float] = Future()
        self._send(lambda: self._swap(staged, done))
        return await asyncio.wrap_future(done)

    async def check(self) -> None:
        """Raises FatalError if the loop ended; see Engine.check."""
        self._require_alive()

    async def close(self) -> None:
        """Ends the loop."""
        self._closing = True
        self._inbox.put(lambda: None)  # wakes the loop
        self._thread.shutdown(wait=False)

    def _send(self, work: Callable[[], None]) -> None:
        """Has the loop's thread do something between two tokens."""
        self._inbox.put(work)
        self._require_alive()  # afterwards: a loop that ends meanwhile empties its inbox, or is seen to have ended

    def _require_alive(self) -> None:
        if self._loop_done is not None and self._loop_done.done() and self._loop_done.exception():
            raise FatalError(f"the sampling loop failed: {self._loop_done.exception()}. {RESTART}")
        if self._closing:
            raise NotReadyError("the engine has ended")

    def _load(self) -> None:
        self.info = read_engine_info(self._config, keep_copy=self._keep_copy)
        device = resolve_device("auto", "model.device")
        self._model = load_policy(self._config.path, dtype=self._config.dtype, device=str(device))

    def _run(self) -> None:
        """Samples until closed. Whatever ends it fails the requests in flight and those that still come."""
        try:
            while not self._closing:
                self._take_arrivals()
                self._drop_rows(lambda row: row.cancelled)
                self._admit()
                if self._rows:
                    self._step()
        finally:
            self._closing = True
            while not self._inbox.empty():
                self._inbox.get()()
            self._admit(everyone=True)
            for row in self._rows:
                row.done.set_exception(NotReadyError("the engine ended before the completion did; repeat the request"))

    def _take_arrivals(self) -> None:
        """Does what waits in the inbox; waits itself if there is nothing to sample."""
        if not self._rows and not self._waiting:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def _admit(self, *, everyone: bool = False) -> None:
        """Lets those who wait join the batch, first come first served, while there is room."""
        while self._waiting and (everyone or len(self._rows) < self._max_num_seqs):
            row = self._waiting.popleft()
            if row.done.set_running_or_notify_cancel():  # from here on the waiting side cannot cancel it by itself
                self._rows.append(row)
                self._cache = None

    def _drop_rows(self, leaves: Callable[[Row], bool]) -> None:
        keep = [index for index, row in enumerate(self._rows) if not leaves(row)]
        if len(keep) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in keep]
        if self._cache is not None and keep:
            indices = torch.tensor(keep, device=self._model.device)
            self._cache.batch_select_indices(indices)
            self._attention_mask = self._attention_mask[indices]

    @torch.inference_mode()
    def _step(self) -> None:
        """Samples one token for every row."""
        logits = self._forward()
        sample_next(self._rows, logits, self._version)
        for row in self._rows:
            row.finish_if_ended()
        self._drop_rows(lambda row: row.done.done())

    def _forward(self) -> torch.Tensor:
        """Returns the logits of each row's next token: [B, V] float32."""
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
            input_ids, self._attention_mask = pad_left([row.ids for row in self._rows], self._model.device)
        else:
            input_ids = torch.tensor([[row.ids[-1]] for row in self._rows], device=self._model.device)
            self._attention_mask = torch.cat([self._attention_mask, torch.ones_like(input_ids)], dim=1)
        positions = (self._attention_mask.cumsum(1) - 1).clamp(min=0)
        output = self._model(
            input_ids=input_ids,
            attention_mask=self._attention_mask,
            position_ids=positions[:, -input_ids.shape[1] :],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _swap(self, staged: StagedWeights | StagedPatch, done: "Future[float]") -> None:
        started = time.perf_counter()
        try:
            if isinstance(staged, StagedPatch):
                patch_model(self._model, staged)
            else:
                load_staged(self._model, staged)
        except InvalidRequestError as error:  # raised before anything is changed
            done.set_exception(error)
            return
        self._cache = None
        self._version = staged.policy_version
        done.set_result(time.perf_counter() - started)


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


def load_staged(model: PreTrainedModel, staged: StagedWeights) -> None:
    """Replaces all of a model's weights, in place. Raises: InvalidRequestError, before anything is changed."""
    tensors = staged.manifest.tensors
    dtypes, shapes = [info.dtype for info in tensors], [info.shape for info in tensors]
    views = map_tensors(staged.path, staged.num_bytes, dtypes, shapes, staged.offsets)
    load_tensors(model, zip((info.name for info in tensors), views, strict=True))


def patch_model(model: PreTrainedModel, patch: StagedPatch) -> None:
    """Writes the elements that changed, in place. Raises: InvalidRequestError, before anything is changed."""
    own = model.state_dict()
    if unknown := next((each.info.name for each in patch.tensors if each.info.name not in own), None):
        raise InvalidRequestError(f"tensors has '{unknown}', which the model has not; push a checkpoint of this model")
    if not patch.tensors:
        return
    counts = [(each.num_changed,) for each in patch.tensors]
    indices = map_tensors(
        patch.path, patch.num_bytes, ["I64"] * len(counts), counts, [each.index_offset for each in patch.tensors]
    )
    dtypes = [each.info.dtype for each in patch.tensors]
    values = map_tensors(patch.path, patch.num_bytes, dtypes, counts, [each.value_offset for each in patch.tensors])
    with torch.no_grad():
        for each, at, new in zip(patch.tensors, indices, values, strict=True):
            parameter = own[each.info.name]
            parameter.view(-1).index_copy_(0, at.to(parameter.device), new.to(parameter.device))
