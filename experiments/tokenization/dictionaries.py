"""Dictionaries that are written down, not learned; give them to a greedy, minimal or Viterbi tokenizer."""

import math
from collections.abc import Iterable

from numpy.typing import ArrayLike

from experiments.tokenization.tokenizer import Token, training_data


def memorising_dictionary(sequences: Iterable[ArrayLike], *, alphabet: int | None = None) -> list[Token]:
    """The single symbols and the whole training text: arXiv 2404.08335, appendix D.

    Args:
        sequences: the texts to be remembered, each as one token; a single flat one counts as such.
        alphabet: number of symbols, for the alphabet 0..alphabet-1; None takes the symbols seen.

    Returns:
        The tokens, without repetition.

    Raises:
        ValueError: if nothing was seen and no alphabet given, or a symbol is outside it.

    Example:
        >>> memorising_dictionary([[0, 1, 1, 0]])
        [(0,), (1,), (0, 1, 1, 0)]
    """
    data, symbols = training_data(sequences, None, alphabet)
    texts = [tuple(sequence.tolist()) for sequence in data if len(sequence)]
    return list(dict.fromkeys([*((symbol,) for symbol in symbols), *texts]))


def run_dictionary(longest: int) -> list[Token]:
    """The three symbols, and 1 followed by a run: 10..0, 11..1 and 12..2; arXiv 2404.08335, theorem E.2.

    The source stays in its state with a large probability, and from 0 and 2 it goes to 1: a run of 0s follows a 1. The
    minimal encoder gives that 1 to the run, the greedy one to the run of 1s before it, and writes the 0s one by one.

    Args:
        longest: length l of the longest token, its 1 included.

    Returns:
        3 l tokens: 0, 1, 2 and three of each length from 2 to l.

    Raises:
        ValueError: if l is below 1.

    Example:
        >>> run_dictionary(3)
        [(0,), (1,), (2,), (1, 0), (1, 1), (1, 2), (1, 0, 0), (1, 1, 1), (1, 2, 2)]
    """
    if longest < 1:
        raise ValueError(f"longest: got {longest}; expected 1 or more")
    runs = [(1, *[symbol] * (length - 1)) for length in range(2, longest + 1) for symbol in range(3)]
    return [(0,), (1,), (2,), *runs]


def longest_run(delta: float) -> int:
    """Length of the longest token of `run_dictionary` in theorem E.2: l = 1 + 2 log(1 / delta) / delta, rounded up.

    Args:
        delta: probability with which the three-state source leaves its state, in (0, 1/2).

    Returns:
        l.

    Raises:
        ValueError: if `delta` is not in (0, 1/2).

    Example:
        >>> longest_run(0.1)
        48
    """
    if not 0 < delta < 0.5:
        raise ValueError(f"delta: got {delta}; expected a number in (0, 1/2)")
    return math.ceil(1 + 2 * math.log(1 / delta) / delta)
