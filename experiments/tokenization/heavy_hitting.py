"""Heavy hitting: are the tokens in use all rare? Definition A.5 and lemmas A.6 to A.11 of arXiv 2404.08335.

A dictionary of d tokens is beta-heavy-hitting if every maximal token t has max_a P(t | a) <= d^-beta. A token is
maximal if it is the longest token at the beginning of some longer string: the greedy encoder uses no other, but for the
last token of a text.
All of this speaks of chains of order 1 (order 0 is one with equal rows). The lemmas "with high probability" are about
LZW trained on a text of at most d symbols; how high depends on constants that the paper does not give.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.sources.source import Source
from experiments.tokenization.theory import checked_delta
from experiments.tokenization.tokenizer import as_sequence


def maximal_tokens(vocabulary: Sequence[Sequence[int]], alphabet: int) -> NDArray[np.int64]:
    """Ids of the tokens t with some t a, a in A, that is no token: the longest token at the beginning of t a is t.

    Args:
        vocabulary: the tokens.
        alphabet: A.

    Returns:
        Sorted ids.

    Example:
        >>> maximal_tokens([(0,), (1,), (0, 0), (0, 1)], 2).tolist()
        [1, 2, 3]
    """
    tokens = {tuple(token) for token in vocabulary}
    extended = [all((*token, symbol) in tokens for symbol in range(alphabet)) for token in map(tuple, vocabulary)]
    return np.flatnonzero(~np.array(extended, dtype=bool))


def worst_log_probability(vocabulary: Sequence[Sequence[int]], source: Source) -> NDArray[np.float64]:
    """log max_a P(t | a) of each token, P(t | a) = P(t_1 | a) P(t_2 | t_1) ... P(t_j | t_{j-1}).

    Args:
        vocabulary: the tokens.
        source: of order 0 or 1.

    Returns:
        Nats, (d,); -inf for an impossible token.

    Raises:
        ValueError: if the order is above 1, or a token is empty or has a symbol that is not in the alphabet.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> np.exp(worst_log_probability([(0,), (0, 1)], SwitchingSource(1, 0.8, 0.1))).round(3).tolist()
        [0.2, 0.16]
    """
    if source.order > 1:
        raise ValueError(f"source: got order {source.order}; expected order 0 or 1, of which the definition speaks")
    with np.errstate(divide="ignore"):
        kernel = np.log(np.broadcast_to(source.kernel, (source.alphabet, source.alphabet)))
    first = kernel.max(axis=0)
    texts = [as_sequence(token, "vocabulary") for token in vocabulary]
    for text in texts:
        if not text.size or not 0 <= text.min() <= text.max() < source.alphabet:
            raise ValueError(f"vocabulary: got {text.tolist()}; expected symbols in 0..{source.alphabet - 1}")
    return np.array([first[text[0]] + kernel[text[:-1], text[1:]].sum() for text in texts])


def heavy_hitting_exponent(vocabulary: Sequence[Sequence[int]], source: Source, size: int | None = None) -> float:
    """The largest beta for which the dictionary is beta-heavy-hitting (definition A.5).

    beta = min over maximal tokens t of log(1 / max_a P(t | a)) / log d

    Args:
        vocabulary: the tokens.
        source: of order 0 or 1.
        size: d, 2 or more; None takes the number of tokens.

    Returns:
        beta, 0 or more.

    Raises:
        ValueError: as `worst_log_probability`, or if there is no token or d < 2.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(heavy_hitting_exponent([(0,), (1,)], SwitchingSource(1, 0.5, 0.5)), 6)
        1.0
    """
    budget = len(vocabulary) if size is None else size
    _check_size(budget)
    used = [vocabulary[i] for i in maximal_tokens(vocabulary, source.alphabet)]
    if not used:
        raise ValueError("vocabulary: got no token; expected at least one")
    return float(-worst_log_probability(used, source).max() / math.log(budget))


def lemma_a_6_bound(beta: float, size: int) -> float:
    """Lower bound on H(Q_MLE, P) under the greedy encoder: beta log d, as P(t) <= max_a P(t | a) <= d^-beta.

    Args:
        beta: from `heavy_hitting_exponent`.
        size: d, as there.

    Returns:
        Nats per token.

    Raises:
        ValueError: if beta < 0 or d < 2.

    Example:
        >>> round(lemma_a_6_bound(0.5, 100), 4)
        2.3026
    """
    if not beta >= 0:
        raise ValueError(f"beta: got {beta}; expected 0 or more")
    _check_size(size)
    return beta * math.log(size)


def lemma_a_7_length(source: Source, size: int, beta: float) -> float:
    """Longest a string can be that has max_a P(s | a) >= delta / d^beta: (beta log d + log(1 / delta)) / delta.

    No chance is involved: P(s | a) <= (1 - delta)^|s| <= exp(-delta |s|).

    Args:
        source: of order 0 or 1, all transition probabilities in (0, 1).
        size: d, 2 or more.
        beta: 0 or more.

    Returns:
        Number of symbols, not rounded.

    Raises:
        ValueError: if the source is not of that kind, beta < 0 or d < 2.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(lemma_a_7_length(SwitchingSource(1, 0.5, 0.5), 16, 1.0), 4)
        6.9315
    """
    delta = checked_delta(source)
    return (lemma_a_6_bound(beta, size) + math.log(1 / delta)) / delta


def lemma_a_8_length(source: Source, size: int) -> float:
    """Length that no LZW token exceeds, with high probability: l_max = 4 log(d A) / delta.

    Args:
        source: as in `lemma_a_7_length`.
        size: d, 2 or more.

    Returns:
        Number of symbols, not rounded.

    Raises:
        ValueError: if the source is not of that kind, or d < 2.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(lemma_a_8_length(SwitchingSource(1, 0.5, 0.5), 50), 2)
        36.84
    """
    _check_size(size)
    return 4 * math.log(size * source.alphabet) / checked_delta(source)


def corollary_a_9_tokens(source: Source, size: int) -> float:
    """Number of tokens that LZW learns from d symbols at least, with high probability: d / l_max.

    Args:
        source: as in `lemma_a_7_length`.
        size: d, 2 or more.

    Returns:
        Number of tokens, not rounded.

    Raises:
        ValueError: as `lemma_a_8_length`.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(corollary_a_9_tokens(SwitchingSource(1, 0.5, 0.5), 50), 2)
        1.36
    """
    return size / lemma_a_8_length(source, size)


def lemma_a_11_log_probability(source: Source, size: int, gamma: float) -> float:
    """log max_a P(t | a) that all LZW tokens exceed, with high probability: log(delta / d^(1 + gamma)).

    Args:
        source: as in `lemma_a_7_length`.
        size: d, 2 or more.
        gamma: above 0.

    Returns:
        Nats.

    Raises:
        ValueError: if the source is not of that kind, gamma <= 0 or d < 2.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(lemma_a_11_log_probability(SwitchingSource(1, 0.5, 0.5), 8, 1.0) / math.log(2), 6)
        -7.0
    """
    if not gamma > 0:
        raise ValueError(f"gamma: got {gamma}; expected a number above 0")
    _check_size(size)
    return math.log(checked_delta(source)) - (1 + gamma) * math.log(size)


def _check_size(size: int) -> None:
    if not size >= 2:
        raise ValueError(f"size: got {size}; expected 2 or more")
