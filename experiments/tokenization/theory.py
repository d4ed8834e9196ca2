"""Bounds and closed forms of arXiv 2404.08335, each with its hypotheses checked.

All losses are in nats per source symbol. delta is the smallest transition probability (assumption 4.2), d a dictionary
size, H_inf the entropy rate, which is also the least loss of any model. The theorems speak of chains of order 1 (an
i.i.d. source is one with equal rows); with the delta of a kernel of higher order their formulas are false.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.sources.source import Source

CONSTANT = 0.99
"""The paper's constant in theorems 4.1 and 4.5 and in conjecture 1; any value below 1 does."""


def theorem_2_1_ratio(source: Source) -> float:
    """How many times the least loss of any model every unigram over characters has at least: H(pi) / H_inf.

    min_Q L_m(Q) = H_m, and L_m(Q) >= m H(pi) for every unigram Q over characters, the cross-entropy of pi and Q being
    at least the entropy of pi. The ratio is unbounded over sources: h(delta) may be as small as one likes.

    Args:
        source: stationary, with H_inf > 0.

    Returns:
        The ratio in the limit of long texts, at least 1.

    Raises:
        ValueError: if the source is deterministic.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(theorem_2_1_ratio(SwitchingSource(2, 0.8, 0.8)), 4)
        1.3852
    """
    return source.unigram_entropy() / _positive_entropy_rate(source)


def smallest_transition(source: Source) -> float:
    """delta of assumption 4.2: the smallest entry of the kernel.

    Args:
        source: any source.

    Returns:
        delta in [0, 1 / A].

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(smallest_transition(SwitchingSource(1, 0.8, 0.8)), 6)
        0.2
    """
    return float(source.kernel.min())


def theorem_4_1_bound(source: Source, size: float) -> float:
    """Loss that some tokenizer with at most d tokens reaches with the best unigram.

    L <= H_inf / (1 - eps),  eps = log(1 / delta) / (0.99 log d)

    Args:
        source: the law of the text, of order 0 or 1, all of its transition probabilities in (0, 1).
        size: d.

    Returns:
        The bound.

    Raises:
        ValueError: if the source is not of that kind, d < 2, or eps >= 1 (the dictionary is too small for the theorem).

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(theorem_4_1_bound(SwitchingSource(1, 0.8, 0.8), 500), 4)
        0.6777
    """
    if not size >= 2:
        raise ValueError(f"size: got {size}; expected 2 or more")
    return _reduction_bound(source, CONSTANT * math.log(size), f"size: got {size}")


def theorem_4_1_size(source: Source, factor: float) -> float:
    """Dictionary size from which on theorem 4.1 promises a loss of at most `factor` times the entropy rate.

    1 / (1 - eps) = f  <=>  d = (1 / delta)^(f / (0.99 (f - 1))): about 1 / delta^2 for f = 2. Infinite where no float
    is large enough.

    Args:
        source: as in `theorem_4_1_bound`.
        factor: f, above 1.

    Returns:
        d, not rounded.

    Raises:
        ValueError: if the source is not of that kind, or f <= 1.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(theorem_4_1_size(SwitchingSource(1, 0.1, 0.1), 2))
        105
    """
    if not factor > 1:
        raise ValueError(f"factor: got {factor}; expected a number above 1")
    log_size = -math.log(checked_delta(source)) / (CONSTANT * (1 - 1 / factor))
    return math.exp(log_size) if log_size < math.log(sys.float_info.max) else math.inf


def theorem_4_3_bound(source: Source, cross_entropy: float) -> float:
    """Loss of the best unigram over greedy tokens, given how improbable the tokens in use are.

    H(Q_MLE, P) >= log(1 / delta) / eps with eps < 1 implies L <= H_inf / (1 - eps); the best eps is taken.

    Args:
        source: as in `theorem_4_1_bound`.
        cross_entropy: H(Q_MLE, P) in nats per token, from `token_cross_entropy`.

    Returns:
        The bound.

    Raises:
        ValueError: if the source is not of that kind, or H(Q_MLE, P) <= log(1 / delta) (then eps >= 1).

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(theorem_4_3_bound(SwitchingSource(1, 0.8, 0.8), 3.3), 3)
        0.977
    """
    return _reduction_bound(source, cross_entropy, f"cross_entropy: got {cross_entropy:.4g}")


def theorem_4_5_bound(source: Source, size: int, training_symbols: float) -> float:
    """Loss that LZW with the greedy encoder reaches with high probability; the formula of theorem 4.1.

    Args:
        source: as in `theorem_4_1_bound`.
        size: d.
        training_symbols: length of the training text; the theorem wants at most d symbols.

    Returns:
        The bound.

    Raises:
        ValueError: as `theorem_4_1_bound`, or if the training text is no length from 0 to d.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(theorem_4_5_bound(SwitchingSource(1, 0.1, 0.1), 200, training_symbols=200), 3)
        0.579
    """
    if not 0 <= training_symbols <= size:
        raise ValueError(f"training_symbols: got {training_symbols}; expected a number from 0 to d = {size}")
    return theorem_4_1_bound(source, size)


def block_loss(source: Source, block: int) -> float:
    """Loss of the best unigram over blocks of r symbols: L = H_r / r (equation 2 for order 1).

    It is also the least loss of any model on texts of r symbols: H_inf + (H_k - k H_inf) / r for r >= k, the order.

    Args:
        source: stationary source.
        block: r, 1 or more.

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: if r < 1.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(block_loss(SwitchingSource(2, 0.8, 0.8), 3), 4)
        0.6289
    """
    if block < 1:
        raise ValueError(f"block: got {block}; expected 1 or more")
    return source.block_entropy(block) / block


def block_length(source: Source, factor: float) -> int:
    """Shortest blocks whose loss is at most `factor` times the entropy rate (equation 2).

    H_inf (1 - 1/r) + H(pi) / r <= f H_inf  <=>  r >= (H(pi) / H_inf - 1) / (f - 1)

    The dictionary has A^r tokens: for f = 2 and slow switching about exp(1 / (delta log(1 / delta))), while LZW needs
    1 / delta^2 (theorem 4.1).

    Args:
        source: of order 0 or 1, with H_inf > 0.
        factor: f, above 1.

    Returns:
        r, 1 or more.

    Raises:
        ValueError: if the source is not of that kind, or f <= 1.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> block_length(SwitchingSource(1, 0.05, 0.05), 1.5)
        5
    """
    if not factor > 1:
        raise ValueError(f"factor: got {factor}; expected a number above 1")
    _check_order(source)
    # A quotient that is whole but for rounding is not rounded up.
    return max(1, math.ceil((theorem_2_1_ratio(source) - 1) / (factor - 1) - 1e-12))


def conjecture_1_bound(source: Source, size: float) -> float:
    """What the paper conjectures instead of theorem 4.1 where transition probabilities may be 0.

    L <= H_inf / (1 - eps),  eps = log(H(pi) / H_inf) / (0.99 log d)

    Args:
        source: of order 0 or 1, ergodic, with H_inf > 0.
        size: d.

    Returns:
        The conjectured bound.

    Raises:
        ValueError: if the source is not of that kind, d < 2, or eps >= 1.

    Example:
        >>> from experiments.sources import ThreeStateSource
        >>> round(conjecture_1_bound(ThreeStateSource(0.1), 500), 4)
        0.4347
    """
    if not size >= 2:
        raise ValueError(f"size: got {size}; expected 2 or more")
    _check_order(source)
    epsilon = math.log(theorem_2_1_ratio(source)) / (CONSTANT * math.log(size))
    if epsilon >= 1:
        raise ValueError(f"size: got {size}, so eps = {epsilon:.3g}; expected eps = log(H(pi)/H_inf) / (...) below 1")
    return source.entropy_rate() / (1 - epsilon)


def log_probability(source: Source, symbols: ArrayLike) -> NDArray[np.float64]:
    """log P(s) of strings in the middle of a stationary text: P(s) = sum_a pi(a) P(s | a).

    Args:
        source: the law.
        symbols: (..., length) integers in 0..A-1.

    Returns:
        (...,) nats; -inf for an impossible string.

    Raises:
        ValueError: if there is no axis, or a symbol is no integer or outside the alphabet.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> source = SwitchingSource(1, 0.8, 0.8)
        >>> np.exp(log_probability(source, [[0, 1], [0, 0]])).round(3).tolist()
        [0.4, 0.1]
    """
    text = np.asarray(symbols)
    if text.ndim < 1 or (text.size and text.dtype.kind not in "iu"):
        raise ValueError(f"symbols: got {text.dtype} of shape {text.shape}; expected integers along one axis or more")
    text = text.astype(np.int64)
    if text.size and not 0 <= text.min() <= text.max() < source.alphabet:
        raise ValueError(f"symbols: got {text.min()}..{text.max()}; expected symbols in 0..{source.alphabet - 1}")
    first = min(source.order, text.shape[-1])
    opening = source.stationary.sum(axis=tuple(range(first, source.order)))
    with np.errstate(divide="ignore"):
        log_opening, log_kernel = np.log(opening), np.log(source.kernel)
    total = log_opening[tuple(np.moveaxis(text[..., :first], -1, 0))]
    count = text.shape[-1] - first
    if count:
        windows = tuple(text[..., i : i + count] for i in range(source.order + 1))
        total = total + log_kernel[windows].sum(axis=-1)
    return total


def token_cross_entropy(frequencies: NDArray[np.float64], vocabulary: Sequence[Sequence[int]], source: Source) -> float:
    """H(Q_MLE, P) = E_{t ~ Q_MLE} log 1 / P(t) in nats per token: large when the tokens in use are long or rare.

    Args:
        frequencies: Q_MLE, (d,).
        vocabulary: the d tokens.
        source: the law of the text.

    Returns:
        Nats per token.

    Raises:
        ValueError: if there is not one frequency per token, or a symbol is outside the alphabet.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(token_cross_entropy(np.array([0.5, 0.5]), [(0,), (1,)], SwitchingSource(1, 0.8, 0.8)), 6)
        0.693147
    """
    if np.shape(frequencies) != (len(vocabulary),):
        raise ValueError(f"frequencies: got shape {np.shape(frequencies)}; expected ({len(vocabulary)},)")
    used = np.flatnonzero(frequencies).tolist()
    return -float(sum(frequencies[i] * log_probability(source, vocabulary[i]) for i in used))


def _reduction_bound(source: Source, information: float, given: str) -> float:
    """H_inf / (1 - eps) with eps = log(1 / delta) / information."""
    delta = checked_delta(source)
    epsilon = math.log(1 / delta) / information if information > 0 else math.inf
    if epsilon >= 1:
        raise ValueError(f"{given}, so eps = {epsilon:.3g}; expected eps = log(1/delta) / (...) below 1")
    return source.entropy_rate() / (1 - epsilon)


def checked_delta(source: Source) -> float:
    """delta of a source that the theorems speak of: order 0 or 1, all transition probabilities in (0, 1).

    Args:
        source: any source.

    Returns:
        delta.

    Raises:
        ValueError: if the source is not of that kind.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> checked_delta(SwitchingSource(1, 0.1, 0.3))
        0.1
    """
    _check_order(source)
    delta = smallest_transition(source)
    if not 0 < delta < 1:
        raise ValueError(f"source: got delta = {delta}; expected transition probabilities strictly between 0 and 1")
    return delta


def _check_order(source: Source) -> None:
    if source.order > 1:
        raise ValueError(f"source: got order {source.order}; expected order 0 or 1, of which the theorem speaks")


def _positive_entropy_rate(source: Source) -> float:
    rate = source.entropy_rate()
    if not rate > 0:
        raise ValueError(f"source: got entropy rate {rate}; expected one above 0")
    return rate
