"""Markov sources whose rows are drawn from a flat Dirichlet law and clipped away from 0.

Assumption 4.2 of arXiv 2404.08335 wants all transition probabilities at or above some delta > 0; rows from
Dir(1, ..., 1) come arbitrarily close to 0. `MarkovSource.random` mixes them with the uniform law, which changes every
row; clipping leaves a row alone that is far enough from 0 already.
"""

from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.sources.markov import MarkovSource, check_kernel_size


def flat_laws(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Laws from Dir(1, ..., 1): independent exponentials divided by their sum.

    Args:
        key: JAX random key.
        shape: (..., K).

    Returns:
        The shape, float32, summing to 1 along the last axis.

    Example:
        >>> flat_laws(jax.random.key(0), (5, 3)).sum(axis=-1).round(5).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    waiting = jax.random.exponential(key, shape)
    return waiting / waiting.sum(axis=-1, keepdims=True)


def clip_rows(rows: ArrayLike, minimum: float) -> NDArray[np.float64]:
    """The nearest laws, in relative entropy, with no probability below a minimum.

    p_x = max(minimum, c r_x), with c such that the p_x sum to 1: minimises KL(r || p), and KL(p || r) too.

    Args:
        rows: (..., A), each non-negative with sum 1.
        minimum: smallest probability, in [0, 1 / A].

    Returns:
        The laws, (..., A) float64.

    Raises:
        ValueError: if `minimum` is outside [0, 1 / A], or a row is no law.

    Example:
        >>> clip_rows([[0.01, 0.39, 0.6], [0.2, 0.3, 0.5]], 0.05).round(4).tolist()
        [[0.05, 0.3742, 0.5758], [0.2, 0.3, 0.5]]
    """
    laws = np.array(rows, dtype=np.float64)
    size = laws.shape[-1] if laws.ndim else 0
    if not size or not np.all(laws >= 0) or not np.allclose(laws.sum(axis=-1), 1, atol=1e-6):
        raise ValueError(f"rows: got an array of shape {laws.shape}; expected non-negative rows that sum to 1")
    if not 0 <= minimum * size <= 1:
        raise ValueError(f"minimum: got {minimum}; expected a number in [0, 1/{size}]")
    laws /= laws.sum(axis=-1, keepdims=True)
    low = laws < minimum
    # Raising some probabilities lowers c, which may push further ones below the minimum, at most A times.
    for _ in range(size):
        left = np.where(low, 0.0, laws)
        scale = (1 - minimum * low.sum(axis=-1, keepdims=True)) / np.maximum(left.sum(axis=-1, keepdims=True), 1e-300)
        clipped = np.where(low, minimum, scale * left)
        low |= clipped < minimum
    return clipped


def clipped_dirichlet_source(key: jax.Array, order: int, alphabet: int = 2, minimum: float = 0.05) -> MarkovSource:
    """A source with rows from Dir(1, ..., 1), clipped to stay at or above a minimum.

    Args:
        key: JAX random key.
        order: number of past symbols that matter.
        alphabet: A.
        minimum: smallest transition probability, in [0, 1 / A].

    Returns:
        The source.

    Raises:
        ValueError: if `order` or `alphabet` is no count, or `minimum` is outside [0, 1 / A].

    Example:
        >>> bool(clipped_dirichlet_source(jax.random.key(0), order=4).kernel.min() >= 0.05)
        True
    """
    check_kernel_size(order, alphabet)
    return MarkovSource(clip_rows(flat_laws(key, (alphabet,) * (order + 1)), minimum))
