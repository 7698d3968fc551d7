"""Completions sampled in this process, where a benchmark needs real ones and no service."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from bench.fixed_work import FixedWork


@torch.no_grad()
def complete(model: PreTrainedModel, prompts: Sequence[list[int]], work: FixedWork, *, seed: int) -> list[list[int]]:
    """Returns the ids of a completion of each prompt, all of the same length, drawn from the whole distribution."""
    width = max(map(len, prompts))
    ids = torch.tensor([[work.pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    cache = DynamicCache(config=model.config)
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    for _ in range(work.new_tokens):
        fed = ids if not drawn else drawn[-1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -fed.shape[1] :]
        output = model(
            input_ids=fed, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        probabilities = (output.logits[:, -1].float() / work.temperature).softmax(-1)
        drawn.append(torch.multinomial(probabilities, 1, generator=generator))
        mask = torch.cat([mask, torch.ones_like(drawn[-1])], 1)
    completions: list[list[int]] = torch.cat(drawn, 1).tolist()
    return completions
