"""Cross-entropy of n-gram models over tokens, in nats per source symbol.

A model is fitted on the tokens of one text and scored on those of another (held out), or of the same (plug-in, which
underestimates: it falls below the entropy rate once the counts are few). Characters are tokens of the character
tokenizer, so the k-gram baselines are the same functions. The loss of a text is its total in nats divided by its number
of source symbols, so that tokenizers with longer tokens compare fairly (arXiv 2404.08335, section 2).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.tokenization.tokenizer import as_sequence


@dataclass(frozen=True)
class Counts:
    """How often each window of tokens, and each window without its last token, was seen; keys are sorted."""

    windows: NDArray[np.int64]
    window_counts: NDArray[np.int64]
    contexts: NDArray[np.int64]
    context_counts: NDArray[np.int64]


@dataclass(frozen=True)
class NGram:
    """An n-gram model with additive smoothing.

    Q(t | c) = (n(c, t) + alpha) / (n(c) + alpha d)

    c is the order - 1 tokens before t, or all of them near the start of a sequence: the first token is scored by the
    unigram.

    Args:
        size: dictionary size d.
        alpha: pseudo-count of each token; 1 is Laplace's rule, 0 the maximum-likelihood fit.
        counts: for each context length 0..order-1.

    Example:
        >>> model = NGram.fit([[0, 1, 1]], size=2, order=1, alpha=1.0)
        >>> round(float(np.exp(model.log_probability([[1]]))), 4)
        0.6
    """

    size: int
    alpha: float
    counts: tuple[Counts, ...]

    @classmethod
    def fit(cls, sequences: Iterable[ArrayLike], size: int, order: int, alpha: float) -> "NGram":
        """Count windows of 1 to `order` tokens.

        Args:
            sequences: 1-D arrays of token ids; windows do not cross from one into the next.
            size: dictionary size d.
            order: n, 1 for a unigram.
            alpha: pseudo-count, 0 or more.

        Returns:
            The model.

        Raises:
            ValueError: if d < 1, `order` < 1, `alpha` is no number, 0 or more, an id is not in 0..d-1, or d**order does
                not fit in 63 bits.
        """
        if order < 1:
            raise ValueError(f"order: got {order}; expected 1 or more")
        if size < 1:
            raise ValueError(f"size: got {size}; expected 1 or more")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha: got {alpha}; expected a number, 0 or more")
        if size**order >= 2**63:
            raise ValueError(f"order: got {order} with {size} tokens; expected size**order below 2**63")
        ids = checked_ids(sequences, size)
        return cls(size, alpha, tuple(_count(_windows(ids, length, size), size) for length in range(1, order + 1)))

    def log_probability(self, sequences: Iterable[ArrayLike]) -> float:
        """Total log probability of some sequences.

        Args:
            sequences: 1-D arrays of token ids.

        Returns:
            Nats; -inf if alpha is 0 and something was never seen.

        Raises:
            ValueError: if an id is not in 0..d-1.
        """
        ids = checked_ids(sequences, self.size)
        order = len(self.counts)
        openings = [_keys([s[:length] for s in ids if len(s) >= length], self.size) for length in range(1, order)]
        return sum(map(self._score, self.counts, [*openings, _windows(ids, order, self.size)]))

    def _score(self, counts: Counts, keys: NDArray[np.int64]) -> float:
        seen = _look_up(counts.windows, counts.window_counts, keys) + self.alpha
        total = _look_up(counts.contexts, counts.context_counts, keys // self.size) + self.alpha * self.size
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(seen > 0, np.log(seen / total), -np.inf)
        return float(logs.sum())


def held_out_loss(
    train: Iterable[ArrayLike], test: Iterable[ArrayLike], *, size: int, order: int, alpha: float, symbols: int
) -> float:
    """Loss on the test tokens of the n-gram model fitted on the training tokens.

    L = -log Q(test) / symbols

    Args:
        train: token ids of the text to fit on, one array per sequence.
        test: token ids of the text to score.
        size: dictionary size d.
        order: 1 for the unigram over tokens, 2 for the bigram.
        alpha: pseudo-count of additive smoothing.
        symbols: number of source symbols in the test text.

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: as `NGram.fit`, or if `symbols` < 1.

    Example:
        >>> round(held_out_loss([[0, 1]], [[0, 1]], size=2, order=1, alpha=0.0, symbols=4), 6)
        0.346574
    """
    if symbols < 1:
        raise ValueError(f"symbols: got {symbols}; expected 1 or more")
    return -NGram.fit(train, size, order, alpha).log_probability(test) / symbols


def plug_in_loss(ids: Sequence[ArrayLike], *, size: int, order: int, symbols: int) -> float:
    """Least loss on a text itself: the maximum-likelihood model scored on the tokens that it was fitted on.

    For order 1 this is (tokens / symbols) x (entropy of the token frequencies). It underestimates the loss on fresh
    text.

    Args:
        ids: token ids, one array per sequence.
        size: dictionary size d.
        order: 1 for the unigram over tokens, 2 for the bigram.
        symbols: number of source symbols of the text.

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: as `held_out_loss`.

    Example:
        >>> round(plug_in_loss([[0, 1, 0, 1]], size=2, order=2, symbols=4), 6)
        0.173287
    """
    return held_out_loss(ids, ids, size=size, order=order, alpha=0.0, symbols=symbols)


def checked_ids(sequences: Iterable[ArrayLike], size: int) -> list[NDArray[np.int64]]:
    """Token ids as 1-D arrays.

    Args:
        sequences: 1-D integers, one array per sequence.
        size: dictionary size d.

    Returns:
        The arrays.

    Raises:
        ValueError: if a sequence is not 1-D integers, or an id is not in 0..d-1.

    Example:
        >>> [ids.tolist() for ids in checked_ids([[0, 2], []], 3)]
        [[0, 2], []]
    """
    ids = [as_sequence(sequence, "sequences") for sequence in sequences]
    for sequence in ids:
        if sequence.size and not 0 <= sequence.min() <= sequence.max() < size:
            raise ValueError(f"sequences: got ids {sequence.min()}..{sequence.max()}; expected ids in 0..{size - 1}")
    return ids


def _windows(ids: list[NDArray[np.int64]], length: int, size: int) -> NDArray[np.int64]:
    """Keys of all windows of `length` tokens: the tokens as digits of a number in base `size`, the last one lowest."""
    keys = []
    for sequence in ids:
        count = len(sequence) - length + 1
        if count > 0:
            key = np.zeros(count, dtype=np.int64)
            for offset in range(length):
                key = key * size + sequence[offset : offset + count]
            keys.append(key)
    return np.concatenate(keys) if keys else np.zeros(0, dtype=np.int64)


def _keys(ids: list[NDArray[np.int64]], size: int) -> NDArray[np.int64]:
    """Key of each whole sequence."""
    return np.concatenate([_windows([sequence], len(sequence), size) for sequence in ids] or [np.zeros(0, np.int64)])


def _count(keys: NDArray[np.int64], size: int) -> Counts:
    windows, window_counts = np.unique(keys, return_counts=True)
    contexts, position = np.unique(windows // size, return_inverse=True)
    context_counts = np.bincount(position, window_counts, len(contexts)).astype(np.int64)
    return Counts(windows, window_counts, contexts, context_counts)


def _look_up(keys: NDArray[np.int64], counts: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count of each wanted key, 0 where it was never seen."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    position = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[position] == wanted, counts[position], 0)
