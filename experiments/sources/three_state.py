"""The three-state source on which the encoder matters (arXiv 2404.08335, theorem E.2 and figure 12)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.sources.markov import MarkovSource, entropy


@dataclass(frozen=True)
class ThreeStateSource:
    """A slow chain over 0, 1, 2 in which 0 and 2 only meet through 1.

    P(x | x) = 1 - delta,  P(1 | 0) = P(1 | 2) = delta,  P(0 | 1) = P(2 | 1) = delta / 2

    (The paper prints P(2 | 1) = delta where P(1 | 2) is meant: the rows would not sum to 1.)

    Args:
        delta: probability of leaving a state, in (0, 1].

    Raises:
        ValueError: if `delta` is outside (0, 1].

    Example:
        >>> source = ThreeStateSource(0.1)
        >>> round(source.entropy_rate(), 6), round(source.unigram_entropy(), 6)
        (0.35974, 1.039721)
    """

    delta: float

    order = 1
    alphabet = 3

    def __post_init__(self) -> None:
        """Check the parameter."""
        if not 0 < self.delta <= 1:
            raise ValueError(f"delta: got {self.delta}; expected a probability in (0, 1]")

    @property
    def kernel(self) -> NDArray[np.float64]:
        """P(x | a) at [a, x], (3, 3)."""
        stay, leave = 1 - self.delta, self.delta
        return np.array([[stay, leave, 0.0], [leave / 2, stay, leave / 2], [0.0, leave, stay]])

    @property
    def stationary(self) -> NDArray[np.float64]:
        """pi = (1/4, 1/2, 1/4), whatever delta."""
        return np.array([0.25, 0.5, 0.25])

    def sample(self, key: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Independent stationary sequences.

        Args:
            key: JAX random key.
            shape: (batch, length).

        Returns:
            symbols (batch, length) int32.

        Raises:
            ValueError: if `shape` is not a pair of non-negative integers.
        """
        return self._chain.sample(key, shape)

    def entropy_rate(self) -> float:
        """Entropy rate in nats: H_inf = delta log(sqrt(2) / delta) + (1 - delta) log(1 / (1 - delta))."""
        staying = -(1 - self.delta) * math.log1p(-self.delta) if self.delta < 1 else 0.0
        return self.delta * math.log(math.sqrt(2) / self.delta) + staying

    def unigram_entropy(self) -> float:
        """Entropy in nats of one symbol: H(pi) = log(8) / 2."""
        return entropy(self.stationary)

    def block_entropy(self, r: int) -> float:
        """Entropy in nats of r consecutive symbols: H_r = H(pi) + (r - 1) H_inf, and 0 for r = 0.

        Args:
            r: block length, 0 or more.

        Returns:
            The block entropy.

        Raises:
            ValueError: if r is not an integer, 0 or more.
        """
        return self._chain.block_entropy(r)

    @cached_property
    def _chain(self) -> MarkovSource:
        return MarkovSource(self.kernel)
