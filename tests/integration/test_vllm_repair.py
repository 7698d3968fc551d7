"""The vLLM engine in this process, given a patch that cannot be applied."""

import pytest
import torch

from rlhf.models.loading import load_policy
from rlhf.models.weights import checkpoint_tensors, tensor_bytes, tensor_info
from services.policy.config import PolicyConfig
from services.policy.engine import Completion, SampleParams
from services.policy.vllm.engine import VllmEngine
from services.policy.weights.memory_file import MemoryFile, WeightsFile
from services.policy.weights.staged import PatchedTensor, StagedPatch

pytestmark = [pytest.mark.vllm, pytest.mark.exhaustive]


@pytest.fixture
def perturbed(smollm_path):
    """A file of weights that are not the engine's."""
    model = load_policy(smollm_path, dtype="bfloat16")
    generator = torch.Generator().manual_seed(0)
    file = WeightsFile()
    for name, tensor in checkpoint_tensors(model):
        noise = torch.randn(tensor.shape, generator=generator) * 0.1 * tensor.float().std()
        changed = (tensor + noise).to(tensor.dtype)
        file.add(tensor_info(name, changed), tensor_bytes(changed))
    yield file
    file.close()


async def greedy(engine: VllmEngine, request_id: str) -> Completion:
    params = SampleParams(max_new_tokens=24, temperature=0.0, stop_ids=(), seed=None)
    return await engine.generate(list(range(100, 120)), params, request_id)


async def test_a_patch_that_fails_half_way_is_mended_with_the_whole_weights(smollm_path, perturbed):
    changes = MemoryFile()
    patched = []
    for info, index in zip(perturbed.manifest.tensors[:3], (0, 0, 2**40), strict=True):  # the third has no such element
        value = torch.full((1,), 9.0, dtype=torch.bfloat16)  # nor is this what the first two become
        index_offset = changes.append(tensor_bytes(torch.tensor([index])))
        value_offset = changes.append(tensor_bytes(value))
        patched.append(PatchedTensor(info=info, num_changed=1, index_offset=index_offset, value_offset=value_offset))
    broken = StagedPatch(
        policy_version=1,
        path=changes.path,
        num_bytes=changes.num_bytes,
        tensors=tuple(patched),
        whole=perturbed.staged(1),
    )
    engine = VllmEngine(
        PolicyConfig.model_validate(
            {"model": {"path": smollm_path, "max_sequence_tokens": 256}, "vllm": {"kv_cache_gib": 0.25}}
        )
    )
    await engine.start()
    try:
        await engine.update_weights(broken)
        mended = await greedy(engine, "mended")
        await engine.update_weights(perturbed.staged(2))
        pushed = await greedy(engine, "pushed")
    finally:
        await engine.close()
        changes.close()
    assert mended.policy_versions == [1] * 24
    assert pushed.policy_versions == [2] * 24
    assert (mended.completion_ids, mended.logprobs) == (pushed.completion_ids, pushed.logprobs)
