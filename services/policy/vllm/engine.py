"""The vLLM engine: AsyncLLM in this process, its core and workers in processes of their own, on GPUs or on a CPU."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf.errors import ConfigError, FatalError, InternalError, NotReadyError
from rlhf.logs import get_logger
from services.policy.config import ModelConfig, PolicyConfig, VllmConfig
from services.policy.engine import Completion, EngineInfo, SampleParams
from services.policy.vllm.liveness import RESTART, Liveness
from services.policy.vllm.plugin import BACKEND, CPU_WEIGHTS_VARIABLE, ENGINE_VARIABLE, PLUGIN
from services.policy.weights.staged import StagedPatch, StagedWeights

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

SHUTDOWN_SECONDS = 2.0
WARM_UP_TOKENS = 2

log = get_logger(__name__)


class VllmEngine:
    """Implements engine.Engine. vLLM is imported in start(): it takes seconds and reads the environment."""

    info: EngineInfo

    def __init__(self, config: PolicyConfig) -> None:
        self._model = config.model
        self._config = config.vllm
        self._keep_copy = config.limits.takes_patches
        self._llm: AsyncLLM
        self._liveness: Liveness
        # The kernel ends vLLM's processes with the thread that made them (plugin.py), so that thread must last.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm-start")

    async def start(self) -> None:
        """Starts vLLM's processes and samples once, so that the first caller does not pay for the warm-up."""
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        info = asyncio.create_task(asyncio.to_thread(_read_info, self._model, self._keep_copy))
        try:
            self._llm = await loop.run_in_executor(self._thread, make_llm, self._model, self._config)
        except ConfigError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise FatalError(f"vLLM did not start: {error}; its log above has the cause") from error
        finally:
            self.info = await info
        self._liveness = Liveness(
            death=lambda: "vLLM's engine process died" if self._llm.errored else None,
            probe=self._llm.get_weight_version,
            probe_seconds=self._config.probe_seconds,
            probe_timeout_seconds=self._config.probe_timeout_seconds,
            max_missed_probes=self._config.max_missed_probes,
        )
        self._liveness.start()
        await self._call(lambda: self._llm.update_weight_version("0"), "naming the weights")
        params = SampleParams(max_new_tokens=WARM_UP_TOKENS, temperature=1.0, stop_ids=(), seed=0)
        await self._call(lambda: self._sample([0], params, "warm-up"), "the first tokens")
        log.info("vLLM is ready", seconds=round(time.perf_counter() - started, 1))

    async def generate(self, prompt_ids: list[int], params: SampleParams, request_id: str) -> Completion:
        """Samples one completion; see Engine.generate."""
        return await self._liveness.sample(lambda: self._sample(prompt_ids, params, request_id))

    async def update_weights(self, staged: StagedWeights | StagedPatch) -> float:
        """Pauses, swaps, resumes; see Engine.update_weights.

        The pause keeps the requests and drops keys and values, which are computed anew: what follows the swap is
        exactly what the new weights give.
        """
        started = time.perf_counter()
        with self._liveness.without_probes():
            try:
                await self._call(self._pause, "the pause")
            except NotReadyError:
                await self._resume()
                raise
            await self._swap_or_die(staged)
            await self._resume()
        return time.perf_counter() - started

    async def check(self) -> None:
        """Raises what is wrong with the engine, if anything; see Engine.check."""
        self._liveness.check()

    async def close(self) -> None:
        """Ends vLLM's processes."""
        if hasattr(self, "_liveness"):
            await self._liveness.close()
        if hasattr(self, "_llm"):
            await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: self._llm.shutdown(timeout=SHUTDOWN_SECONDS)
            )
        self._thread.shutdown(wait=False)

    async def _call(self, work: Callable[[], Awaitable[T]], what: str) -> T:
        return await self._liveness.call(work, timeout=self._config.call_timeout_seconds, what=what)

    async def _sample(self, prompt_ids: list[int], params: SampleParams, request_id: str) -> Completion:
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            stream = self._llm.generate(tokens_input(prompt_ids), _sampling_params(params), request_id)
            async with aclosing(stream):
                async for output in stream:
                    if output.finished:
                        return _completion(output)
        except EngineDeadError:
            await self._wait_for_obituary()
        except EngineGenerateError as error:
            raise InternalError(f"vLLM failed on the request: {error.__cause__ or error}") from error
        raise NotReadyError("vLLM dropped the request; repeat it")

    async def _wait_for_obituary(self) -> None:
        """Ends with the FatalError of the watch, which learns of the death within a moment of the requests."""
        await self._call(asyncio.Event().wait, "dying")

    async def _pause(self) -> None:
        # As AsyncLLM.pause_generation, without its sleep of 20 ms, which only lets outputs arrive before it returns.
        await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=True)

    async def _swap_or_die(self, staged: StagedWeights | StagedPatch) -> None:
        """Loads the weights into the paused engine, at the second try if need be: whole weights repair half of them.

        An engine that fails twice is given up paused: to resume would be to sample from a mixture of two models.
        """
        try:
            return await self._swap(staged)
        except InternalError as error:
            log.error("the swap failed; trying once more, with all weights", error=str(error))
        try:
            await self._swap(staged.whole if isinstance(staged, StagedPatch) else staged)
        except InternalError as error:
            fatal = FatalError(f"{error}; its weights may be half applied. {RESTART}")
            self._liveness.report("weights", fatal)
            raise fatal from error

    async def _swap(self, staged: StagedWeights | StagedPatch) -> None:
        """Loads the weights into the paused engine. Raises InternalError if that may have changed some of them."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        request = WeightTransferUpdateRequest(update_info=_update_info(staged))
        try:
            await self._call(self._llm.start_weight_update, "the start of the swap")
            await self._call(lambda: self._llm.update_weights(request), "the swap")
            await self._call(
                lambda: self._llm.finish_weight_update(weight_version=str(staged.policy_version)), "the end of the swap"
            )
        except FatalError:
            raise
        except Exception as error:  # vLLM reports a worker's failure as a bare Exception
            raise InternalError(f"the swap to version {staged.policy_version} failed in vLLM: {error}") from error

    async def _resume(self) -> None:
        await self._call(self._llm.resume_generation, "the resumption")


def make_llm(model: ModelConfig, config: VllmConfig) -> "AsyncLLM":
    """Returns a started AsyncLLM; blocks for 10 s and more.

    vLLM's processes end with the thread that calls this (plugin.py), so it must outlive them.
    Raises: ConfigError if the model or the environment does not allow it; whatever vLLM raises if it cannot start.
    """
    from services.policy.model_facts import max_sequence_tokens

    max_model_len = max_sequence_tokens(model)
    _prepare_environment()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = current_platform.is_cpu()
    os.environ.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", str(config.start_timeout_seconds))
    if on_cpu:
        _prepare_cpu_environment(config)
    eager = on_cpu if config.enforce_eager is None else config.enforce_eager
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(model.path),
            served_model_name="policy",
            dtype=model.dtype,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30) if on_cpu else None,
            distributed_executor_backend="uni" if on_cpu and config.tensor_parallel_size == 1 else None,
            enforce_eager=eager,
            # On a CPU, vLLM 0.32 cannot take back the random number that a seeded request drew at the end of a
            # chunk of its prompt, and the engine dies of it ("CPU Generator does not use offset").
            enable_chunked_prefill=False if on_cpu else None,
            generation_config="vllm",  # the checkpoint's own defaults must not touch the distribution
            logprobs_mode="processed_logprobs",  # after temperature
            weight_transfer_config={"backend": BACKEND},
            disable_log_stats=False,
        )
    )


def _prepare_environment() -> None:
    """Sets what vLLM reads from the environment, before its first import; what the user has set stays."""
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        raise ConfigError(f"environment variable VLLM_PLUGINS is '{plugins}'; add '{PLUGIN}' to it, or unset it")
    os.environ[ENGINE_VARIABLE] = "1"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def _prepare_cpu_environment(config: VllmConfig) -> None:
    """Sets what makes vLLM quick on a CPU."""
    os.environ[CPU_WEIGHTS_VARIABLE] = config.cpu_weights
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over vllm.kv_cache_gib
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Eager sampling gains nothing from the compiler, which needs g++ and seconds at the first request.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if config.cpu_cores:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = config.cpu_cores
    else:  # by itself vLLM leaves one core idle
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)


def _read_info(model: Any, keep_copy: bool) -> EngineInfo:
    from services.policy.model_facts import read_engine_info

    return read_engine_info(model, keep_copy=keep_copy)


def _sampling_params(params: SampleParams) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=params.temperature,
        seed=params.seed,
        max_tokens=params.max_new_tokens,
        stop_token_ids=list(params.stop_ids),
        ignore_eos=True,  # stop_token_ids says it all
        logprobs=0,  # the sampled token's own
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: "RequestOutput") -> Completion:
    sample = output.outputs[0]
    if sample.finish_reason not in ("stop", "length"):
        raise NotReadyError(f"vLLM ended the request early ({sample.finish_reason}); repeat it")
    versions = [int(span.version) for span in sample.weight_versions for _ in range(span.start, span.end)]
    flat = sample.logprobs
    return Completion(
        completion_ids=list(sample.token_ids),
        logprobs=[flat.logprobs[start] for start in flat.start_indices],
        policy_versions=versions,
        finish_reason=sample.finish_reason,
    )


def _update_info(staged: StagedWeights | StagedPatch) -> dict[str, Any]:
    """Returns the fields of transfer.UpdateInfo."""
    whole = staged.whole if isinstance(staged, StagedPatch) else staged
    tensors = whole.manifest.tensors
    return {
        "path": whole.path,
        "num_bytes": whole.num_bytes,
        "names": [info.name for info in tensors],
        "dtypes": [info.dtype for info in tensors],
        "shapes": [list(info.shape) for info in tensors],
        "offsets": list(whole.offsets),
        "patch": _patch_info(staged) if isinstance(staged, StagedPatch) else None,
    }


def _patch_info(staged: StagedPatch) -> dict[str, Any]:
    """Returns the fields of transfer.PatchInfo."""
    return {
        "path": staged.path,
        "num_bytes": staged.num_bytes,
        "names": [each.info.name for each in staged.tensors],
        "dtypes": [each.info.dtype for each in staged.tensors],
        "counts": [each.num_changed for each in staged.tensors],
        "index_offsets": [each.index_offset for each in staged.tensors],
        "value_offsets": [each.value_offset for each in staged.tensors],
    }
