"""Which items share a forward pass. No torch."""

from collections.abc import Sequence

# A forward pass reads every weight once, however little it holds: about what this many tokens cost. Padding below it is
# cheaper than another pass.
FREE_PADDING_TOKENS = 64

MAX_PADDING_RATIO = 0.15
"""Above the free padding, the share of a batch that may be padding."""


def plan_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Indices of `lengths`, each in exactly one batch; longest first, so that a batch holds like lengths.

    A batch of n items is padded to its longest, L: n * L is at most max_batch_tokens (a single longer item goes alone)
    and its padding at most MAX_PADDING_RATIO of n * L, or FREE_PADDING_TOKENS.
    """
    batches: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if batches:
            padded = (len(batches[-1]) + 1) * longest
            new_padding = padding + longest - length
            allowed = max(FREE_PADDING_TOKENS, MAX_PADDING_RATIO * padded)
            if padded <= max_batch_tokens and new_padding <= allowed:
                batches[-1].append(index)
                padding = new_padding
                continue
        batches.append([index])
        longest, padding = length, 0
    return batches


def batch_of_first(lengths: Sequence[int], max_batch_tokens: int) -> list[int]:
    """Indices of the planned batch that holds the first of at least one length."""
    return next(batch for batch in plan_batches(lengths, max_batch_tokens) if 0 in batch)
