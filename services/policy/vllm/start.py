"""How vLLM is started for a policy: its environment and its arguments, on GPUs and on a CPU."""

import os
from typing import TYPE_CHECKING

from rlhf.errors import ConfigError
from services.policy.config import ModelConfig, VllmConfig
from services.policy.vllm.plugin import BACKEND, CPU_WEIGHTS_VARIABLE, ENGINE_VARIABLE, PLUGIN

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


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
