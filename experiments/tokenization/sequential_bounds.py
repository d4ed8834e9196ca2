"""Bounds for sequential BPE: theorems 4.7 and B.1 of arXiv 2404.08335.

Sequential BPE (algorithm 1) reads n = Theta(d^2) symbols in d texts and adds at most one token per text. The theorem
holds with probability 1 - e^{-Omega(d eps^2)}. Its error term hides a constant, which is an argument here: with any
constant of order 1 the error is far above 1 at sizes that can be run, since delta enters with the ninth power.

Where the preamble of appendix B.2 has 4 H_inf and log(2 A), theorem and proof have 2 H_inf and log(4 A), as here.
"""

import math

from experiments.sources.source import Source
from experiments.tokenization.theory import checked_delta


def smallest_dictionary(alphabet: int, size: float, epsilon: float) -> float:
    """d_0 = eps d / (2 log(4 A)): with fewer tokens than this, texts are split before they are encoded.

    Args:
        alphabet: A.
        size: d.
        epsilon: eps, in (0, 1).

    Returns:
        d_0, not rounded.

    Raises:
        ValueError: if a number is outside its range.

    Example:
        >>> round(smallest_dictionary(2, 500, 0.1), 2)
        12.02
    """
    if not (alphabet >= 1 and size >= 2):
        raise ValueError(f"alphabet, size: got {alphabet} and {size}; expected at least 1 and 2")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon: got {epsilon}; expected a number in (0, 1)")
    return epsilon * size / (2 * math.log(4 * alphabet))


def theorem_4_7_error(source: Source, size: float, epsilon: float, *, constant: float) -> float:
    """The error term eps' = C log(1 / eps) log^3(1 / delta) / (eps delta^9 log d).

    Args:
        source: of order 0 or 1, all transition probabilities in (0, 1).
        size: d, 2 or more.
        epsilon: eps, in (0, 1).
        constant: C, which the paper does not give.

    Returns:
        eps'.

    Raises:
        ValueError: if the source is not of that kind, or a number is outside its range.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(theorem_4_7_error(SwitchingSource(1, 0.5, 0.5), 500, 0.1, constant=1.0))
        632
    """
    delta = checked_delta(source)
    smallest_dictionary(source.alphabet, size, epsilon)
    _check_constant(constant)
    return constant * math.log(1 / epsilon) * math.log(1 / delta) ** 3 / (epsilon * delta**9 * math.log(size))


def theorem_4_7_bound(source: Source, size: float, epsilon: float, *, constant: float) -> float:
    """Loss of the best unigram over the tokens of sequential BPE: L <= (2 + eps') H_inf + eps.

    Args:
        source: as in `theorem_4_7_error`.
        size: d.
        epsilon: eps.
        constant: C.

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: as `theorem_4_7_error`.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(theorem_4_7_bound(SwitchingSource(1, 0.5, 0.5), 500, 0.1, constant=1e-9), 4)
        1.4863
    """
    return (2 + theorem_4_7_error(source, size, epsilon, constant=constant)) * source.entropy_rate() + epsilon


def large_dictionary_bound(source: Source, size: float, epsilon: float, tokens: int, *, constant: float) -> float:
    """Theorem B.1 with more than d_0 tokens, encoded greedily: L <= H_inf / (1 - eps').

    Args:
        source: as in `theorem_4_7_error`.
        size: d.
        epsilon: eps.
        tokens: dictionary size that sequential BPE has reached.
        constant: C.

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: as `theorem_4_7_error`, or if there are at most d_0 tokens, or eps' >= 1.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(large_dictionary_bound(SwitchingSource(1, 0.5, 0.5), 500, 0.1, 20, constant=1e-4), 4)
        0.7399
    """
    error = theorem_4_7_error(source, size, epsilon, constant=constant)
    least = smallest_dictionary(source.alphabet, size, epsilon)
    if not tokens > least:
        raise ValueError(f"tokens: got {tokens}; expected more than d_0 = {least:.4g}")
    if error >= 1:
        raise ValueError(f"size: got {size}, so eps' = {error:.3g}; expected eps' below 1")
    return source.entropy_rate() / (1 - error)


def small_dictionary_bound(source: Source, size: float, epsilon: float, tokens: int, *, constant: float) -> float:
    """Theorem B.1 with fewer than d_0 tokens, texts split: L <= (1 - 2 d_0 / d) (2 H_inf + C / log d) + eps.

    eps = (2 d_0 / d) log(4 A) is what the split texts that satisfy no bound cost.

    Args:
        source: as in `theorem_4_7_error`.
        size: d.
        epsilon: eps.
        tokens: dictionary size that sequential BPE has reached.
        constant: C of the term O(1 / log d), which the paper does not give.

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: as `theorem_4_7_error`, or if there are d_0 tokens or more.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(small_dictionary_bound(SwitchingSource(1, 0.1, 0.1), 500, 0.1, 8, constant=0.0), 4)
        0.7189
    """
    checked_delta(source)
    _check_constant(constant)
    least = smallest_dictionary(source.alphabet, size, epsilon)
    if not tokens < least:
        raise ValueError(f"tokens: got {tokens}; expected fewer than d_0 = {least:.4g}")
    return (1 - 2 * least / size) * (2 * source.entropy_rate() + constant / math.log(size)) + epsilon


def _check_constant(constant: float) -> None:
    if not constant >= 0:
        raise ValueError(f"constant: got {constant}; expected 0 or more")
