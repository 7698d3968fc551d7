"""Proof that the saved checkpoint is the trained policy, and that transformers and the engine read it alike."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rlhf.client.policy import PolicyClient
from rlhf.data.prompts import PromptItem
from rlhf.models.loading import DtypeName, load_policy
from rlhf.models.weights import checkpoint_manifest
from rlhf.rollout import Prompt, Sampling
from rlhf_cli.demo.results import CheckpointCheck


async def check_checkpoint(
    checkpoint: Path,
    prompts: Sequence[PromptItem],
    *,
    trained_digest: str,
    trained_dtype: DtypeName,
    fresh_target: str,
    max_new_tokens: int,
) -> CheckpointCheck:
    """Returns how the checkpoint compares.

    Args:
        checkpoint: the folder.
        prompts: whose greedy completions are compared.
        trained_digest: of the weights that the policy service was pushed last, in trained_dtype.
        fresh_target: a policy service that loaded the checkpoint in float32: in bfloat16 two correct programs may part
            where two tokens are nearly as probable.
        max_new_tokens: most tokens of a completion.
    """
    engine = await _greedy_from_service(fresh_target, prompts, max_new_tokens)
    transformers = _greedy_from_transformers(checkpoint, prompts, max_new_tokens, await _stop_ids(fresh_target))
    return CheckpointCheck(
        digests_equal=trained_digest == checkpoint_manifest(checkpoint, trained_dtype).digest,
        num_prompts=len(prompts),
        num_equal=sum(one == other for one, other in zip(engine, transformers, strict=True)),
    )


async def _stop_ids(target: str) -> list[int]:
    async with PolicyClient(target) as policy:
        return list((await policy.get_model()).stop_ids)


async def _greedy_from_service(target: str, prompts: Sequence[PromptItem], max_new_tokens: int) -> list[list[int]]:
    """Returns the greedy completion of each prompt by a policy service."""
    requests = [Prompt(group_id=str(index), prompt_ids=item.prompt_ids) for index, item in enumerate(prompts)]
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    completions: dict[int, list[int]] = {}
    async with PolicyClient(target) as policy:
        async for rollout in policy.generate(requests, sampling):
            completions[int(rollout.group_id)] = rollout.completion_ids
    return [completions[index] for index in range(len(prompts))]


def _greedy_from_transformers(
    checkpoint: Path, prompts: Sequence[PromptItem], max_new_tokens: int, stop_ids: list[int]
) -> list[list[int]]:
    """Returns the greedy completion of each prompt by transformers' own generate()."""
    model = load_policy(checkpoint, dtype="float32")
    completions = []
    for item in prompts:
        input_ids = torch.tensor([item.prompt_ids])
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_ids,
        )
        completions.append(output[0, len(item.prompt_ids) :].tolist())
    return completions
