"""How much a text repeats itself."""

import itertools

NGRAM_WORDS = 4
"""Words of an n-gram in repeated_ngrams: long enough that ordinary writing hardly repeats one."""


def distinct_2(text: str) -> float | None:
    """Returns the share of different pairs among the pairs of neighbouring words, in (0, 1]; None if there is none.

    Source: Li et al. 2016, arXiv:1510.03055, here for each text on its own.
    """
    pairs = list(itertools.pairwise(text.split()))
    return len(set(pairs)) / len(pairs) if pairs else None


def repeated_ngrams(text: str, num_words: int = NGRAM_WORDS) -> float | None:
    """Returns the share of the text's n-grams of words that have stood in it before, in [0, 1); None if it has none.

    Source: Welleck et al. 2020, arXiv:1908.04319 (seq-rep-n).
    """
    words = text.split()
    ngrams = [tuple(words[start : start + num_words]) for start in range(len(words) - num_words + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else None
