"""The order-k switching source of "Toward a Theory of Tokenization in LLMs" (arXiv 2404.08335, figures 1 and 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.sources.markov import MarkovSource, checked_shape, entropy, is_count


@dataclass(frozen=True)
class SwitchingSource:
    """A binary source in which X_n depends on X_{n-k} alone.

    P(X_n = 1 | X_{n-k} = 0) = p,  P(X_n = 0 | X_{n-k} = 1) = q: k independent order-1 chains, interleaved, each
    started from its stationary law (q, p) / (p + q).

    Args:
        order: k, 1 or more.
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.

    Raises:
        ValueError: if `order` < 1, if p or q is outside [0, 1], or if both are 0 (no unique stationary law).

    Example:
        >>> source = SwitchingSource(order=2, p=0.8, q=0.8)
        >>> round(source.entropy_rate(), 6), round(source.block_entropy(3), 6)
        (0.500402, 1.886697)
        >>> source.sample(jax.random.key(0), (4, 100)).shape
        (4, 100)
    """

    order: int
    p: float
    q: float

    alphabet = 2

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not is_count(self.order) or self.order < 1:
            raise ValueError(f"order: got {self.order}; expected an integer, 1 or more")
        for name in ("p", "q"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}; expected a probability in [0, 1]")
        if self.p + self.q == 0:
            raise ValueError("p, q: got 0 and 0; expected at least one above 0, otherwise no symbol ever changes")

    @property
    def kernel(self) -> NDArray[np.float64]:
        """The kernel in the form of `MarkovSource`: (2,) * order + (2,), oldest symbol first."""
        rows = self._chain.kernel.reshape((2,) + (1,) * (self.order - 1) + (2,))
        return np.broadcast_to(rows, (2,) * (self.order + 1)).copy()

    @property
    def stationary(self) -> NDArray[np.float64]:
        """Law of `order` consecutive symbols, (2,) * order: they are independent."""
        law = np.ones(())
        for _ in range(self.order):
            law = np.multiply.outer(law, self._chain.stationary)
        return law

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
        batch, length = checked_shape(shape)
        chains = self._chain.sample(key, (batch * self.order, -(-length // self.order)))
        return chains if self.order == 1 else _interleave(chains, self.order, length)

    def entropy_rate(self) -> float:
        """Entropy rate in nats per symbol: H_inf = (q h(p) + p h(q)) / (p + q), h the binary entropy."""
        return self._chain.entropy_rate()

    def unigram_entropy(self) -> float:
        """Entropy in nats of one symbol: H(pi) = h(p / (p + q))."""
        return entropy(self._chain.stationary)

    def block_entropy(self, r: int) -> float:
        """Entropy in nats of r consecutive symbols: H_r = min(r, k) H(pi) + max(r - k, 0) H_inf.

        Args:
            r: block length, 0 or more.

        Returns:
            The block entropy; 0 for r = 0.

        Raises:
            ValueError: if r is not an integer, 0 or more.
        """
        if not is_count(r):
            raise ValueError(f"r: got {r!r}; expected an integer, 0 or more")
        r = int(r)
        first = min(r, self.order)
        return first * self.unigram_entropy() + (r - first) * self.entropy_rate()

    @cached_property
    def _chain(self) -> MarkovSource:
        return MarkovSource([[1 - self.p, self.p], [self.q, 1 - self.q]])


@partial(jax.jit, static_argnames=("order", "length"))
def _interleave(chains: jax.Array, order: int, length: int) -> jax.Array:
    """(batch * order, steps) -> (batch, length), with symbol n taken from chain n mod order."""
    batch, steps = chains.shape[0] // order, chains.shape[1]
    return chains.reshape(batch, order, steps).swapaxes(1, 2).reshape(batch, order * steps)[:, :length]
