"""Where the dictionary or the encoder decides: theorems D.1 and E.2 of arXiv 2404.08335.

D.1: a tokenizer that memorises its training text looks excellent there and is useless on fresh text. E.2: one and the
same dictionary is nearly optimal with as few tokens as possible and bad with the greedy encoder.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from experiments.sources.switching import SwitchingSource
from experiments.sources.three_state import ThreeStateSource
from experiments.tokenization.theory import log_probability

MINIMAL_FACTOR = 1.273
"""The factor of theorem E.2: what `minimal_encoder_ratio` is at most, over all delta, rounded up."""


def memoriser_information(source: SwitchingSource, text: ArrayLike) -> float:
    """H(Q_MLE, P) on the training text of the dictionary A + {s_train}: log 1 / P(s_train).

    The whole text is one token there. On typical texts of n symbols it is n H_inf (1 - O(n^{-1/4})), with probability
    1 - e^{-Omega(sqrt(n))} (theorem D.1): by theorem 4.3 such a dictionary would be almost optimal if the statistic of
    the training text were that of fresh text.

    Args:
        source: of order 1 with p = q in (0, 1).
        text: s_train, 1-D, 2 symbols or more.

    Returns:
        Nats per token.

    Raises:
        ValueError: if the source or the text is not of that kind.

    Example:
        >>> round(memoriser_information(SwitchingSource(1, 0.5, 0.5), [0, 1, 1, 0]), 4)
        2.7726
    """
    return -_checked_text(source, text)[0]


def memoriser_bound(source: SwitchingSource, text: ArrayLike) -> float:
    """Lower bound on the unigram loss of the dictionary A + {s_train} on fresh text, for every encoder.

    L >= (1 - eps) H(pi),  eps = 2 n P(s_train)

    The training text begins at a given place with probability P(s_train), so a share of at most n P(s_train) of all
    symbols is written with that token. The rest is written as characters, of which at most that share is missing: by
    concavity and homogeneity of (a + b) h(a / (a + b)), they cost (1 - 2 n P(s_train)) log 2 at least. Theorem D.1 is
    this with P(s_train) of a typical text, e^{-n H_inf (1 - O(n^{-1/4}))}.

    Args:
        source: of order 1 with p = q in (0, 1).
        text: s_train, 1-D, 2 symbols or more.

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: if the source or the text is not of that kind, or eps >= 1 (the text is too short).

    Example:
        >>> round(memoriser_bound(SwitchingSource(1, 0.5, 0.5), [0, 1] * 10), 6)
        0.693121
    """
    log_p, length = _checked_text(source, text)
    epsilon = 2 * length * math.exp(log_p)
    if epsilon >= 1:
        raise ValueError(f"text: got {length} symbols, so eps = {epsilon:.3g}; expected a longer text, eps below 1")
    return (1 - epsilon) * source.unigram_entropy()


def minimal_encoder_ratio(delta: float) -> float:
    """What the proof of theorem E.2 bounds L / H_inf by: delta log(3 + 4 log(1 / delta) / delta) / H_inf.

    About a share delta of the symbols begins a token, and a token costs the logarithm of the number of tokens in use at
    most. The largest value, 1.2724, is that at delta = 0.040.

    Args:
        delta: of the three-state source, in (0, 1/2).

    Returns:
        The ratio.

    Raises:
        ValueError: if `delta` is outside (0, 1/2).

    Example:
        >>> round(minimal_encoder_ratio(0.04), 4)
        1.2724
    """
    rate = _checked_three_state(ThreeStateSource(delta)).entropy_rate()
    return delta * math.log(3 + 4 * math.log(1 / delta) / delta) / rate


def theorem_e_2_upper_bound(source: ThreeStateSource) -> float:
    """Loss of the best unigram over the minimal encoding with the dictionary of theorem E.2: L <= 1.273 H_inf.

    Args:
        source: with delta in (0, 1/2).

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: if `delta` is outside (0, 1/2).

    Example:
        >>> round(theorem_e_2_upper_bound(ThreeStateSource(0.1)), 4)
        0.4579
    """
    return MINIMAL_FACTOR * _checked_three_state(source).entropy_rate()


def theorem_e_2_lower_bound(source: ThreeStateSource) -> float:
    """Loss of the best unigram over the greedy encoding with the same dictionary: at least a share of H(pi).

    L >= (1 - delta)^2 / (3 (1 + delta)) H(pi)

    Args:
        source: with delta in (0, 1/2).

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: if `delta` is outside (0, 1/2).

    Example:
        >>> round(theorem_e_2_lower_bound(ThreeStateSource(0.1)), 4)
        0.2552
    """
    delta = _checked_three_state(source).delta
    return (1 - delta) ** 2 / (3 * (1 + delta)) * source.unigram_entropy()


def _checked_text(source: SwitchingSource, text: ArrayLike) -> tuple[float, int]:
    """log P(s_train) and its length."""
    if source.order != 1 or source.p != source.q or not 0 < source.p < 1:
        raise ValueError(f"source: got {source}; expected order 1 and p = q in (0, 1)")
    symbols = np.asarray(text)
    if symbols.ndim != 1 or len(symbols) < 2:
        raise ValueError(f"text: got shape {symbols.shape}; expected one axis of 2 symbols or more")
    return float(log_probability(source, symbols)), len(symbols)


def _checked_three_state(source: ThreeStateSource) -> ThreeStateSource:
    if not source.delta < 0.5:
        raise ValueError(f"delta: got {source.delta}; expected a number in (0, 1/2)")
    return source
