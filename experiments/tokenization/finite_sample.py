"""Unigrams over LZW tokens fitted on a finite text: algorithm 2 and theorem C.1 of arXiv 2404.08335."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.sources.source import Source
from experiments.tokenization.heavy_hitting import lemma_a_8_length, maximal_tokens, worst_log_probability
from experiments.tokenization.losses import checked_ids
from experiments.tokenization.theory import checked_delta, theorem_4_1_bound


def tokens_of_text(source: Source, size: int, symbols: int) -> int:
    """How many tokens algorithm 2 keeps of a text: n' = floor(n / l_max), l_max = 4 log(d A) / delta (lemma A.8).

    With high probability no token is longer than l_max, so the text has that many; their number then carries no
    information about which ones they are.

    Args:
        source: of order 0 or 1, all transition probabilities in (0, 1).
        size: d, 2 or more.
        symbols: length n of the text, 0 or more.

    Returns:
        n'.

    Raises:
        ValueError: if the source is not of that kind, d < 2 or n < 0.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> tokens_of_text(SwitchingSource(1, 0.5, 0.5), 50, 1000)
        27
    """
    if not 0 <= symbols < math.inf:
        raise ValueError(f"symbols: got {symbols}; expected a number, 0 or more")
    return math.floor(symbols / lemma_a_8_length(source, size))


def laplace_unigram(ids: ArrayLike, size: int, tokens: int | None = None) -> NDArray[np.float64]:
    """The Laplace estimate of a unigram from the first n' tokens of a text (algorithm 2).

    Q(t) = (n_t + 1) / (n' + d)

    (The paper prints n_t + d below the line, which does not sum to 1.)

    Args:
        ids: token ids of one text.
        size: d.
        tokens: n', for example `tokens_of_text`; None takes all.

    Returns:
        Q, (d,), summing to 1.

    Raises:
        ValueError: if an id is not in 0..d-1, or the text has fewer than n' tokens.

    Example:
        >>> laplace_unigram([0, 0, 1, 2, 2], size=3, tokens=3).round(4).tolist()
        [0.5, 0.3333, 0.1667]
    """
    (text,) = checked_ids([ids], size)
    count = len(text) if tokens is None else tokens
    if not 0 <= count <= len(text):
        raise ValueError(f"tokens: got {count}; expected a number from 0 to {len(text)}, the length of the text")
    return (np.bincount(text[:count], minlength=size) + 1) / (count + size)


def excess_loss(frequencies: NDArray[np.float64], estimate: NDArray[np.float64], symbols_per_token: float) -> float:
    """How much more an estimated unigram loses than the best one: KL(Q_MLE || Q) / E|t|.

    Args:
        frequencies: Q_MLE, (d,).
        estimate: Q, (d,), positive where Q_MLE is.
        symbols_per_token: E|t| under Q_MLE.

    Returns:
        Nats per source symbol.

    Example:
        >>> round(excess_loss(np.array([0.5, 0.5]), np.array([0.25, 0.75]), 2.0), 6)
        0.071921
    """
    used = frequencies > 0
    ratios = np.log(frequencies[used] / estimate[used])
    return float(frequencies[used] @ ratios) / symbols_per_token


def concentrates(vocabulary: Sequence[Sequence[int]], source: Source, size: int, theta: float) -> bool:
    """Whether event E_theta of theorem C.1 holds: delta / d^(1 + theta) <= max_a P(t | a) <= 1 / d^(1 - theta).

    For every maximal token t. It has probability 1 - d^{-Omega_{theta, delta}(log d)} under LZW; at a size that can be
    run it often fails.

    Args:
        vocabulary: the tokens.
        source: of order 0 or 1, all transition probabilities in (0, 1).
        size: d, 2 or more.
        theta: in (0, 1).

    Returns:
        Whether it holds.

    Raises:
        ValueError: if the source is not of that kind, or a number is outside its range.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> concentrates([(0,), (1,)], SwitchingSource(1, 0.5, 0.5), 2, theta=0.1)
        True
    """
    _check_share("theta", theta)
    if not size >= 2:
        raise ValueError(f"size: got {size}; expected 2 or more")
    used = [vocabulary[i] for i in maximal_tokens(vocabulary, source.alphabet)]
    logs = worst_log_probability(used, source)
    low = math.log(checked_delta(source)) - (1 + theta) * math.log(size)
    return bool(logs.min() >= low and logs.max() <= -(1 - theta) * math.log(size))


def theorem_c_1_symbols(
    source: Source, size: int, *, theta: float, excess: float, failure: float, constant: float
) -> float:
    """Length of text from which on the Laplace unigram loses at most 1 + xi times what the best unigram loses.

    n >= C d^(1 + theta) log^3(d / (eta delta)) log log(d / eta) / (delta xi^2),  if E_theta holds (`concentrates`)

    Args:
        source: of order 0 or 1, all transition probabilities in (0, 1).
        size: d.
        theta: in (0, 1/3), with d^(1 - 3 theta) >= 1 + delta^-2.
        excess: xi, in (0, 1).
        failure: eta, in (0, 1): the probability that the conclusion fails.
        constant: C, which the paper does not give.

    Returns:
        Number of symbols.

    Raises:
        ValueError: if the source is not of that kind, a number is outside its range, or d is too small.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> source, numbers = SwitchingSource(1, 0.5, 0.5), dict(theta=0.01, excess=0.1, failure=0.1, constant=1.0)
        >>> f"{theorem_c_1_symbols(source, 1000, **numbers):.1e}"
        '4.6e+08'
    """
    for name, share in (("theta", theta), ("excess", excess), ("failure", failure)):
        _check_share(name, share)
    if not constant > 0:
        raise ValueError(f"constant: got {constant}; expected a number above 0")
    delta = checked_delta(source)
    if theta >= 1 / 3 or not size ** (1 - 3 * theta) >= 1 + delta**-2:
        raise ValueError(
            f"size, theta: got {size} and {theta}; expected theta below 1/3 and d^(1 - 3 theta) at least "
            f"1 + delta^-2 = {1 + delta**-2:.4g}"
        )
    logs = math.log(size / (failure * delta)) ** 3 * math.log(math.log(size / failure))
    return constant * size ** (1 + theta) * logs / (delta * excess**2)


def corollary_c_2_bound(source: Source, size: int, excess: float) -> float:
    """Loss of LZW with the Laplace unigram, from about d^1.01 / (delta xi^2) symbols on: (1 + xi) H_inf / (1 - eps).

    With eps of theorem 4.1, theta = 0.01 in theorem C.1, and logarithms left out of the number of symbols.

    Args:
        source: as in `theorem_4_1_bound`.
        size: d.
        excess: xi, in (0, 1).

    Returns:
        The bound.

    Raises:
        ValueError: as `theorem_4_1_bound`, or if xi is outside (0, 1).

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(corollary_c_2_bound(SwitchingSource(1, 0.8, 0.8), 500, 0.1), 4)
        0.7454
    """
    _check_share("excess", excess)
    return (1 + excess) * theorem_4_1_bound(source, size)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: got {value}; expected a number in (0, 1)")
