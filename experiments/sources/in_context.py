"""In-context learning of Markov chains: every sequence has a chain of its own, drawn at random.

The task of Edelman et al., "The Evolution of Statistical Induction Heads" (arXiv 2402.11004), with their variants; a
context of more symbols gives the n-gram task, and that of Rajaraman et al. (arXiv 2407.17686). What can be predicted
is in `experiments.sources.predictors`.

Translation: K symbols, contexts of k symbols (an n-gram task has k = n - 1), S = K**k contexts, numbered with the
oldest symbol most significant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.sources.dirichlet import flat_laws
from experiments.sources.markov import checked_shape, is_count

Rows = Literal["independent", "doubly_stochastic", "equal"]
_LARGEST_DOUBLY_STOCHASTIC = 8  # the share of drawn rows that is accepted falls from 1 (K = 2) to about 0.002


class Chains(NamedTuple):
    """Sequences and the chains that made them.

    Args:
        kernels: P(x | s) of each sequence, (B, S, K) float32.
        symbols: (B, L) int32.
    """

    kernels: jax.Array
    symbols: jax.Array


@dataclass(frozen=True)
class InContextChains:
    """Random chains, one per sequence, each started from its own stationary law.

    Args:
        alphabet: K, 2 or more.
        order: k, 1 or more.
        rows: law of a kernel. "independent": all rows from Dir(1, ..., 1). "doubly_stochastic": uniform among the
            matrices whose columns sum to 1 too, so that symbols are uniform and a unigram learns nothing (order 1).
            "equal": all rows are one draw from Dir(1, ..., 1), so that the unigram is optimal.
        equal_share: share of sequences that have equal rows whatever `rows` says: the mixtures of the paper.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> chains = InContextChains(alphabet=3).sample(jax.random.key(0), (4, 101))
        >>> chains.kernels.shape, chains.symbols.shape
        ((4, 3, 3), (4, 101))
    """

    alphabet: int = 2
    order: int = 1
    rows: Rows = "independent"
    equal_share: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not is_count(self.alphabet) or self.alphabet < 2:
            raise ValueError(f"alphabet: got {self.alphabet}; expected an integer, 2 or more")
        if not is_count(self.order) or self.order < 1:
            raise ValueError(f"order: got {self.order}; expected an integer, 1 or more")
        if self.rows not in ("independent", "doubly_stochastic", "equal"):
            raise ValueError(f"rows: got {self.rows!r}; expected 'independent', 'doubly_stochastic' or 'equal'")
        if self.rows == "doubly_stochastic" and (self.order > 1 or self.alphabet > _LARGEST_DOUBLY_STOCHASTIC):
            raise ValueError(
                f"rows: got 'doubly_stochastic' with order {self.order} and {self.alphabet} symbols; "
                f"expected order 1 and at most {_LARGEST_DOUBLY_STOCHASTIC} symbols"
            )
        if not 0 <= self.equal_share <= 1:
            raise ValueError(f"equal_share: got {self.equal_share}; expected a share in [0, 1]")

    @partial(jax.jit, static_argnums=(0, 2))
    def kernels(self, key: jax.Array, batch: int) -> jax.Array:
        """Random kernels: rows P(. | s) ~ Dir(1, ..., 1), or as `rows` and `equal_share` say.

        Args:
            key: JAX random key.
            batch: B.

        Returns:
            (B, S, K) float32.
        """
        own, shared, choice = jax.random.split(key, 3)
        contexts = self.alphabet**self.order
        shape = (batch, contexts, self.alphabet)
        equal = jnp.broadcast_to(flat_laws(shared, (batch, 1, self.alphabet)), shape)
        if self.rows == "equal":
            return equal
        if self.rows == "independent":
            kernels = flat_laws(own, shape)
        else:
            kernels = jax.vmap(partial(doubly_stochastic, size=self.alphabet))(jax.random.split(own, batch))
        chosen = jax.random.uniform(choice, (batch, 1, 1)) < self.equal_share
        return jnp.where(chosen, equal, kernels)

    def sample(self, key: jax.Array, shape: Sequence[int]) -> Chains:
        """Sequences of fresh chains: X_1..X_k from the stationary law, then X_t ~ P(. | X_{t-k..t-1}).

        Args:
            key: JAX random key.
            shape: (batch, length).

        Returns:
            Kernels and symbols.

        Raises:
            ValueError: if `shape` is not a pair of non-negative integers.
        """
        batch, length = checked_shape(shape)
        kernel_key, path_key = jax.random.split(key)
        kernels = self.kernels(kernel_key, batch)
        return Chains(kernels, sample_each(path_key, kernels, length))


def doubly_stochastic(key: jax.Array, size: int) -> jax.Array:
    """A uniform draw from the doubly stochastic matrices (the Birkhoff polytope).

    K - 1 rows from Dir(1, ..., 1) are kept if what the columns lack to 1 is nowhere negative; that is the last row.
    The polytope is an affine image of the rows that are kept, so the draw is uniform on it.

    Args:
        key: JAX random key.
        size: K, 2 or more.

    Returns:
        (K, K) float32.

    Example:
        >>> matrix = doubly_stochastic(jax.random.key(0), 3)
        >>> bool(jnp.allclose(matrix.sum(axis=0), 1, atol=1e-5) & jnp.allclose(matrix.sum(axis=1), 1, atol=1e-5))
        True
    """

    def draw(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        following, now = jax.random.split(state[0])
        rows = flat_laws(now, (size - 1, size))
        return following, jnp.concatenate([rows, 1 - rows.sum(axis=0, keepdims=True)])

    def refused(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(state[1] < 0)

    return lax.while_loop(refused, draw, (key, jnp.full((size, size), -1.0)))[1]


@jax.jit
def stationary_contexts(kernels: jax.Array) -> jax.Array:
    """Stationary law of the contexts of each chain: pi = pi T, with T((s_1..s_k) -> (s_2..s_k, x)) = P(x | s).

    Solves (I - T' + 1 1') pi = 1, which has one solution where the law is unique.

    Args:
        kernels: (B, S, K).

    Returns:
        (B, S), summing to 1.

    Example:
        >>> stationary_contexts(jnp.array([[[0.5, 0.5], [1.0, 0.0]]])).round(4)
        Array([[0.6667, 0.3333]], dtype=float32)
    """
    contexts, alphabet = kernels.shape[1:]
    following = (np.arange(contexts)[:, None] * alphabet + np.arange(alphabet)) % contexts
    lifted = jnp.zeros((len(kernels), contexts, contexts)).at[:, np.arange(contexts)[:, None], following].add(kernels)
    system = jnp.eye(contexts)[None] - lifted.swapaxes(1, 2) + 1.0
    law = jnp.clip(jnp.linalg.solve(system, jnp.ones((len(kernels), contexts, 1)))[..., 0], 0.0)
    return law / law.sum(axis=1, keepdims=True)


@partial(jax.jit, static_argnames="length")
def sample_each(key: jax.Array, kernels: jax.Array, length: int) -> jax.Array:
    """One stationary path of each chain.

    Args:
        key: JAX random key.
        kernels: (B, S, K).
        length: L.

    Returns:
        symbols (B, L) int32.
    """
    batch, contexts, alphabet = kernels.shape
    order = round(np.log(contexts) / np.log(alphabet))
    start_key, path_key = jax.random.split(key)
    first = jax.random.categorical(start_key, jnp.log(stationary_contexts(kernels)))
    opening = first[:, None] // alphabet ** np.arange(order - 1, -1, -1)[None] % alphabet

    def step(context: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = jnp.take_along_axis(kernels, context[:, None, None], axis=1)[:, 0]
        symbol = jnp.argmax(jnp.log(law) + noise, axis=1)
        return (context * alphabet + symbol) % contexts, symbol

    noise = jax.random.gumbel(path_key, (max(length - order, 0), batch, alphabet))
    _, symbols = lax.scan(step, first, noise)
    return jnp.concatenate([opening, symbols.T], axis=1)[:, :length].astype(jnp.int32)
