"""What vLLM must know of us in each of its processes; pyproject.toml registers it as a general plugin of vLLM's.

vLLM calls register() in the front end, the engine core and every worker, sometimes more than once. Whoever runs vLLM
for other purposes in the same environment is left alone: apart from naming the weight transfer, everything here waits
for ENGINE_VARIABLE, which our engine sets and its processes inherit.
"""

import ctypes
import multiprocessing
import os
import signal
from typing import Any

BACKEND = "rlhf"
"""Name of our weight transfer in vLLM's WeightTransferConfig."""
PLUGIN = "rlhf"
"""Name of the entry point: VLLM_PLUGINS, where it is set, must list it."""
ENGINE_VARIABLE = "RLHF_VLLM_ENGINE"
"""Environment variable, "1" in the processes of a policy service's engine."""
CPU_WEIGHTS_VARIABLE = "RLHF_VLLM_CPU_WEIGHTS"
"""Environment variable, the configuration's vllm.cpu_weights for the processes of a policy service's engine."""
_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Names our weight transfer; an engine of ours also ends with its parent, may use AMX, and keeps its weights."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "services.policy.vllm.transfer", "StagedWeightTransferEngine"
        )
    if os.environ.get(ENGINE_VARIABLE) == "1":
        _die_with_parent()
        _request_amx()
        _keep_weights_writable()


def _die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends: vLLM's own processes outlive a killed front end."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it ended before the line above
        os._exit(1)


def _request_amx() -> None:
    """Asks the kernel for the tiles of AMX, on Intel CPUs that have them; elsewhere nothing.

    vLLM's attention computes with them in bfloat16. Unless somebody has asked, such as torch's own matrix products of a
    larger model, the process dies of SIGILL.
    """
    import torch

    torch.cpu._init_amx()


def _keep_weights_writable() -> None:
    """Has the CPU's linear layers keep their parameters: beside packed copies that they compute with, or without.

    Stock vLLM drops them, and then nothing can be loaded into a running model: a push fails, or leaves a tied lm_head
    stale in silence. Packed copies make generation faster, cost the model's size in memory once more, and must be built
    anew after a push (transfer.py).
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import torch
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm
    if getattr(pack, "keeps_weight", False):
        return
    in_place = os.environ.get(CPU_WEIGHTS_VARIABLE) == "in_place"

    def keep(layer: Any, remove_weight: bool) -> None:
        if in_place and layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            pack(layer, remove_weight=False)

    keep.keeps_weight = True  # type: ignore[attr-defined]
    utils.dispatch_cpu_unquantized_gemm = keep  # the layers look it up in the module at each call
