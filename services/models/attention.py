"""Which of torch's attention kernels a training step takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

MAX_PLAIN_TOKENS = 512
"""Plain attention keeps a probability for every pair of positions; longer sequences have too many of them."""


@contextmanager
def training_attention(device: torch.device | str, longest: int) -> Iterator[None]:
    """Within it, attention that needs a gradient is fast for sequences of up to `longest` tokens.

    On a CPU the backward pass of torch's fused attention takes more than twice the time of the plain one (11 sequences
    of 88 tokens, 9 heads of 64, bfloat16: 26 ms against 10 ms). The setting is the process's, not the thread's.
    """
    if torch.device(device).type != "cpu" or longest > MAX_PLAIN_TOKENS:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
