"""Awkward sequences and dictionaries, and byte-pair merging written out."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from experiments.sources.switching import SwitchingSource

Merge = tuple[int, int]


def random_sequence(generator: np.random.Generator, alphabet: int, longest: int = 200) -> NDArray[np.int64]:
    """Empty, a single symbol, one symbol repeated, periodic, or random."""
    length = int(generator.choice([0, 1, 2, 3, 17, 64, longest]))
    kind = generator.integers(4)
    if kind == 0:
        return np.full(length, generator.integers(alphabet))
    if kind == 1:
        return np.arange(length) % alphabet
    return generator.integers(0, alphabet, length)


def random_dictionary(generator: np.random.Generator, alphabet: int, longest: int = 7) -> list[tuple[int, ...]]:
    """The single symbols in random places among up to twelve random tokens."""
    tokens = {tuple(generator.integers(0, alphabet, generator.integers(1, longest)).tolist()) for _ in range(12)}
    tokens |= {(symbol,) for symbol in range(alphabet)}
    return [token for _, token in sorted((generator.random(), token) for token in tokens)]


def switching_text(p: float, symbols: int, *, order: int = 1, seed: int = 0) -> NDArray[np.int64]:
    """A switching source with p = q without its JAX sampler: each of the interleaved chains is a cumulative parity."""
    source = SwitchingSource(order, p, p)
    flips = np.random.default_rng(seed).random((symbols // order, order)) < source.p
    return (np.cumsum(flips, axis=0) % 2).ravel()


def merge(tokens: Sequence[int], pair: Merge, new: int) -> list[int]:
    """Replace a pair from left to right, without overlap."""
    merged: list[int] = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new
        else:
            merged.append(token)
    return merged


def pair_counts(tokens: Sequence[int], overlapping: bool) -> Counter[Merge]:
    """How often each pair occurs, or how often it can be merged."""
    counts = Counter(pairwise(tokens))
    if not overlapping:
        for pair in counts:
            counts[pair] = len(tokens) - len(merge(tokens, pair, -1))
    return counts


def train_by_definition(
    chunks: Sequence[Sequence[int]], alphabet: int, size: int, overlapping: bool = True
) -> list[Merge]:
    """Merge the most frequent pair, ties to the smallest ids, until there are `size` tokens or no pair is left."""
    rules: list[Merge] = []
    while alphabet + len(rules) < size:
        counts = sum((pair_counts(chunk, overlapping) for chunk in chunks), Counter[Merge]())
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        chunks = [merge(chunk, best, alphabet + len(rules)) for chunk in chunks]
        rules.append(best)
    return rules
