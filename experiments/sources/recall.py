"""Recall tasks: what was read some steps ago has to be told."""

from typing import Any, NamedTuple

import numpy as np


class Recall(NamedTuple):
    """Sequences, what to answer at each position, and where there is an answer; each (N, L), of NumPy or of JAX."""

    tokens: Any
    targets: Any
    asked: Any


def lagged_copy(random: np.random.Generator, shape: tuple[int, int], *, lag: int, alphabet: int) -> Recall:
    """Tell at each position the token that stood `lag` positions before: targets[t] = tokens[t - lag].

    Tokens are independent and uniform, so that without knowing the order of the tokens nothing but how often each
    occurred helps; 1 / alphabet of all answers are right by chance.

    Args:
        random: generator.
        shape: (N, L).
        lag: steps back, at least 1.
        alphabet: number of tokens, at least 2.

    Returns:
        int32 tokens and targets, and the positions from `lag` on; the targets before are 0.

    Raises:
        ValueError: a number is too small, or no position has an answer.

    Example:
        >>> task = lagged_copy(np.random.default_rng(0), (1, 5), lag=2, alphabet=9)
        >>> (task.targets[0, 2:] == task.tokens[0, :3]).all(), task.asked[0].tolist()
        (np.True_, [False, False, True, True, True])
    """
    if lag < 1 or alphabet < 2:
        raise ValueError(f"lag, alphabet: got {lag} and {alphabet}, expected at least 1 and 2")
    if len(shape) != 2 or shape[1] <= lag:
        raise ValueError(f"shape: got {shape}, expected (N, L) with L above the lag, {lag}")
    tokens = random.integers(0, alphabet, shape, dtype=np.int32)
    targets = np.zeros_like(tokens)
    targets[:, lag:] = tokens[:, :-lag]
    return Recall(tokens, targets, np.broadcast_to(np.arange(shape[1]) >= lag, shape).copy())
