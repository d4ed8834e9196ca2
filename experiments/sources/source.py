"""What every Markov source offers: its exact law, its exact entropies, and samples."""

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from numpy.typing import NDArray


class Source(Protocol):
    """A stationary source of order k over the symbols 0..A-1."""

    @property
    def order(self) -> int:
        """Number of past symbols that matter, k."""

    @property
    def alphabet(self) -> int:
        """Number of symbols, A."""

    @property
    def kernel(self) -> NDArray[np.float64]:
        """P(x | s) at [s_1, ..., s_k, x], oldest symbol first: (A,) * k + (A,)."""

    @property
    def stationary(self) -> NDArray[np.float64]:
        """Law of k consecutive symbols, (A,) * k."""

    def sample(self, key: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Independent stationary sequences (batch, length), int32."""

    def entropy_rate(self) -> float:
        """H_inf in nats per symbol."""

    def unigram_entropy(self) -> float:
        """H(pi), the entropy of one symbol in nats."""

    def block_entropy(self, r: int) -> float:
        """H_r, the entropy of r consecutive symbols in nats."""
