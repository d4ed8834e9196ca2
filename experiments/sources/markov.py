"""Markov sources of any finite order: exact stationary samples, exact entropies.

Samples are drawn in JAX (`sample` may be called under `jit`); the stationary law and the entropies are float64 NumPy.

Translation: S = A**order contexts, numbered with the oldest symbol most significant; context s followed by symbol x
becomes context (s * A + x) mod S.
"""

import math
from collections.abc import Sequence
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

_WORD = 2**31  # symbols are chosen by 31 random bits, so that the threshold of probability 1 still fits in uint32
_LANES = 2048  # paths run side by side; below this the cost of a time step hardly depends on their number
_SHORTEST_BLOCK = 64
_MOST_ROUNDS = 32
_LARGEST_KERNEL = 2**26


def entropy(probabilities: ArrayLike) -> float:
    """Entropy of a probability vector in nats, with 0 log 0 = 0.

    H(p) = -sum_i p_i log p_i

    Args:
        probabilities: any shape, non-negative, summing to 1.

    Returns:
        The entropy in nats.

    Example:
        >>> round(entropy([0.5, 0.5]), 6)
        0.693147
    """
    p = np.asarray(probabilities, dtype=np.float64).ravel()
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)) + 0.0)


def stationary_distribution(transition: ArrayLike | scipy.sparse.spmatrix) -> NDArray[np.float64]:
    """The stationary law pi = pi T of a finite chain that has exactly one.

    It lives on the only closed communicating class; the other states are transient and get probability 0.

    Args:
        transition: (S, S), dense or sparse, rows summing to 1.

    Returns:
        pi, shape (S,).

    Raises:
        ValueError: if several closed classes exist, hence several stationary laws.

    Example:
        >>> stationary_distribution([[0.5, 0.5], [1.0, 0.0]]).round(4).tolist()
        [0.6667, 0.3333]
    """
    matrix = scipy.sparse.csr_matrix(transition, dtype=np.float64)
    matrix.eliminate_zeros()
    states = matrix.shape[0]
    count, label = connected_components(matrix, directed=True, connection="strong")
    source, target = matrix.nonzero()
    closed = np.setdiff1d(np.arange(count), label[source[label[source] != label[target]]])
    if len(closed) != 1:
        raise ValueError(
            f"transition: got a chain with {len(closed)} closed classes of states; expected one, "
            "otherwise its stationary law is not unique"
        )
    members = np.flatnonzero(label == closed[0])
    pi = np.zeros(states)
    pi[members] = _solve_stationary(matrix[members][:, members])
    return pi


def _solve_stationary(matrix: scipy.sparse.csr_matrix) -> NDArray[np.float64]:
    """Solve pi (T - I) = 0, sum(pi) = 1 for an irreducible T; one equation is redundant, the sum replaces it."""
    size = matrix.shape[0]
    if size == 1:
        return np.ones(1)
    balance = (matrix.T - scipy.sparse.identity(size)).tocsr()
    system = scipy.sparse.vstack([balance[:-1], np.ones((1, size))]).tocsc()
    right = np.zeros(size)
    right[-1] = 1.0
    pi = np.clip(spsolve(system, right), 0.0, None)
    pi /= pi.sum()
    if not np.abs(pi @ matrix - pi).max() < 1e-9:
        raise ValueError("transition: got a chain too close to reducible for its stationary law to be computed")
    return pi


def _thresholds(probabilities: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Cumulative probabilities along the last axis as integers for 31 random bits.

    Rounding moves a probability by at most 2**-31. Telling that from the exact law takes about 2**60 symbols, far more
    than any run draws; probabilities 0 and 1 stay exact, so a forbidden symbol never appears.
    """
    cumulative = np.cumsum(probabilities, axis=-1)
    return np.round(np.minimum(cumulative, 1.0) * _WORD).astype(np.uint32)


def follow(thresholds: jax.Array, starts: jax.Array, words: jax.Array, alphabet: int) -> tuple[jax.Array, jax.Array]:
    """Paths driven by given random words, one time step after the other.

    x_t = #{j : word_t >= thresholds[s_t, j]},  s_{t+1} = (s_t A + x_t) mod S

    Args:
        thresholds: (S, A - 1) uint32, cumulative probabilities times 2**31.
        starts: (lanes,) contexts before the first symbol.
        words: (length, lanes) uint32 below 2**31.
        alphabet: A.

    Returns:
        symbols (length, lanes) int32, and the contexts (lanes,) after the last one.
    """
    contexts = thresholds.shape[0]

    def step(state: jax.Array, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        symbol = jnp.sum(word[:, None] >= thresholds[state], axis=1, dtype=jnp.int32)
        return (state * alphabet + symbol) % contexts, symbol

    final, symbols = lax.scan(step, starts, words)
    return symbols, final


def follow_in_blocks(
    thresholds: jax.Array, starts: jax.Array, words: jax.Array, alphabet: int, blocks: int
) -> jax.Array:
    """The same paths as `follow`, with time cut into blocks that run side by side.

    Every block needs the context that the block before it ends in. Guess them, run all blocks, replace the guesses by
    the contexts reached, and repeat until nothing changes: then every block started where the one before it ended, so
    the result is the sequential path, bit for bit. Paths driven by the same words merge, hence two rounds are the rule.
    A chain that does not forget its start within a block (nearly periodic) is followed sequentially instead.

    Args:
        thresholds: as in `follow`.
        starts: as in `follow`.
        words: (length, lanes), length divisible by `blocks`.
        alphabet: A.
        blocks: number of blocks of equal length.

    Returns:
        symbols (length, lanes) int32.
    """
    length, lanes = words.shape
    size = length // blocks
    columns = words.reshape(blocks, size, lanes).swapaxes(0, 1).reshape(size, blocks * lanes)

    def refine(carry: tuple) -> tuple:
        guess, _, _, rounds = carry
        symbols, final = follow(thresholds, guess.reshape(-1), columns, alphabet)
        reached = jnp.concatenate([starts[None], final.reshape(blocks, lanes)[:-1]])
        return reached, symbols, jnp.all(reached == guess), rounds + 1

    def unsettled(carry: tuple) -> jax.Array:
        return ~carry[2] & (carry[3] < _MOST_ROUNDS)

    guess = jnp.broadcast_to(starts, (blocks, lanes))
    empty = jnp.zeros(columns.shape, jnp.int32)
    _, symbols, settled, _ = lax.while_loop(unsettled, refine, (guess, empty, jnp.asarray(False), 0))
    joined = symbols.reshape(size, blocks, lanes).swapaxes(0, 1).reshape(length, lanes)
    return lax.cond(settled, lambda: joined, lambda: follow(thresholds, starts, words, alphabet)[0])


@partial(jax.jit, static_argnames=("shape", "alphabet"))
def sample_paths(
    key: jax.Array, start: jax.Array, thresholds: jax.Array, shape: tuple[int, int], alphabet: int
) -> jax.Array:
    """Independent paths of a chain whose first context is drawn from a given law.

    The context before the first symbol is stationary, hence so is everything after it.

    Args:
        key: JAX random key.
        start: (S,) uint32, cumulative start law times 2**31.
        thresholds: (S, A - 1) uint32, cumulative kernel times 2**31.
        shape: (batch, length).
        alphabet: A.

    Returns:
        symbols (batch, length) int32.
    """
    batch, length = shape
    start_key, path_key = jax.random.split(key)
    first = jax.random.bits(start_key, (batch,), jnp.uint32) >> 1
    starts = jnp.searchsorted(start, first, side="right").astype(jnp.int32)
    blocks = max(1, min(_LANES // max(batch, 1), length // _SHORTEST_BLOCK))
    padded = length + -length % blocks
    words = jax.random.bits(path_key, (padded, batch), jnp.uint32) >> 1
    if blocks == 1:
        return follow(thresholds, starts, words, alphabet)[0].T
    return follow_in_blocks(thresholds, starts, words, alphabet, blocks)[:length].T


class MarkovSource:
    """A stationary Markov source of order k over the symbols 0..A-1.

    P(X_n = x | X_{n-k..n-1} = s) = kernel[s_1, ..., s_k, x], oldest symbol first. Order 0 is an i.i.d. source.

    Args:
        kernel: (A,) * order + (A,), non-negative, last axis summing to 1.

    Raises:
        ValueError: if the kernel is not of that form, or if its stationary law is not unique.

    Example:
        >>> source = MarkovSource([[0.2, 0.8], [0.8, 0.2]])
        >>> round(source.entropy_rate(), 6), round(source.unigram_entropy(), 6)
        (0.500402, 0.693147)
        >>> source.sample(jax.random.key(0), (4, 100)).shape
        (4, 100)
    """

    def __init__(self, kernel: ArrayLike) -> None:
        """Check the kernel and solve for its stationary law."""
        self.kernel = _checked_kernel(kernel)
        self.kernel.flags.writeable = False
        self.order = self.kernel.ndim - 1
        self.alphabet = self.kernel.shape[-1]
        self.stationary = self._solve().reshape(self.kernel.shape[:-1])
        self.stationary.flags.writeable = False

    @classmethod
    def random(cls, key: jax.Array, order: int, alphabet: int = 2, minimum: float = 0.0) -> "MarkovSource":
        """A source whose rows are drawn from Dir(1, ..., 1), mixed with the uniform law to stay at or above `minimum`.

        row = minimum + (1 - A * minimum) * Dir(1, ..., 1): entrywise at least `minimum`, as Assumption 4.2 of
        arXiv 2404.08335 asks.

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
            >>> MarkovSource.random(jax.random.key(0), order=2, minimum=0.05).kernel.shape
            (2, 2, 2)
        """
        check_kernel_size(order, alphabet)
        if not 0 <= minimum * alphabet <= 1:
            raise ValueError(f"minimum: got {minimum}; expected a number in [0, 1/{alphabet}]")
        drawn = jax.random.dirichlet(key, jnp.ones(alphabet), (alphabet,) * order)
        rows = np.asarray(drawn, dtype=np.float64)
        rows /= rows.sum(axis=-1, keepdims=True)
        return cls(minimum + (1 - alphabet * minimum) * rows)

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
        return sample_paths(key, *self._integer_laws, checked_shape(shape), self.alphabet)

    def entropy_rate(self) -> float:
        """Entropy rate in nats per symbol: H_inf = sum_s pi(s) H(P(. | s))."""
        return self._entropy_rate

    def unigram_entropy(self) -> float:
        """Entropy in nats of one symbol, H(pi): the least loss of a model that ignores the past."""
        return entropy(self.stationary.reshape(-1) @ self._rows)

    def block_entropy(self, r: int) -> float:
        """Entropy in nats of r consecutive symbols.

        H_r = H(lifted pi) + (r - k) H_inf for r >= k; below that, the entropy of the marginal of the stationary law.

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
        if r >= self.order:
            return entropy(self.stationary) + (r - self.order) * self._entropy_rate
        return entropy(self.stationary.sum(axis=tuple(range(r, self.order))))

    @property
    def _rows(self) -> NDArray[np.float64]:
        return self.kernel.reshape(-1, self.alphabet)

    @cached_property
    def _integer_laws(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        return _thresholds(self.stationary.reshape(-1)), _thresholds(self._rows)[:, :-1]

    @cached_property
    def _entropy_rate(self) -> float:
        rows = [entropy(row) for row in self._rows]
        return float(self.stationary.reshape(-1) @ np.array(rows))

    def _solve(self) -> NDArray[np.float64]:
        contexts = self.alphabet**self.order
        source = np.repeat(np.arange(contexts), self.alphabet)
        target = (source * self.alphabet + np.tile(np.arange(self.alphabet), contexts)) % contexts
        lifted = scipy.sparse.coo_matrix((self._rows.ravel(), (source, target)), shape=(contexts, contexts))
        try:
            return stationary_distribution(lifted)
        except ValueError as error:
            raise ValueError(f"kernel: {error}") from None


def checked_shape(shape: Sequence[int]) -> tuple[int, int]:
    """`shape` as a pair (batch, length) of Python integers.

    Args:
        shape: what the caller gave.

    Returns:
        The pair.

    Raises:
        ValueError: if it is not two non-negative integers.
    """
    pair = tuple(shape) if isinstance(shape, Sequence | np.ndarray) else ()
    if len(pair) != 2 or not all(is_count(size) for size in pair):
        raise ValueError(f"shape: got {shape}; expected (batch, length), two non-negative integers")
    return int(pair[0]), int(pair[1])


def check_kernel_size(order: int, alphabet: int) -> None:
    """Refuse orders and alphabets that no kernel can have, or none that fits into memory.

    Args:
        order: k.
        alphabet: A.

    Raises:
        ValueError: if they are no counts, A is 0, or the kernel has more than 2**26 entries.

    Example:
        >>> check_kernel_size(4, 2)
    """
    for name, value, least in (("order", order, 0), ("alphabet", alphabet, 1)):
        if not is_count(value) or value < least:
            raise ValueError(f"{name}: got {value}; expected an integer, {least} or more")
    if (int(order) + 1) * math.log(int(alphabet)) > math.log(_LARGEST_KERNEL) + 1e-9:
        raise ValueError(f"order: got {order} with {alphabet} symbols; expected 2**26 probabilities at most")


def is_count(value: object) -> bool:
    """Whether a value is a non-negative integer of Python or NumPy.

    Args:
        value: what the caller gave.

    Returns:
        False for floats and booleans, whatever their value.

    Example:
        >>> is_count(3), is_count(3.0), is_count(True), is_count(-1)
        (True, False, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0


def _checked_kernel(kernel: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.array(kernel, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("kernel: got no rectangle of numbers; expected (A,) * order + (A,) probabilities") from None
    if array.ndim < 1 or array.size == 0 or len(set(array.shape)) != 1:
        raise ValueError(f"kernel: got shape {array.shape}; expected (A,) * order + (A,), all axes equal and not empty")
    if not np.all(array >= 0):
        raise ValueError(f"kernel: got an entry {float(array.min())}; expected probabilities, all at least 0")
    off = float(np.abs(array.sum(axis=-1) - 1).max())
    if not off < 1e-6:
        raise ValueError(f"kernel: got a row that sums to 1 with an error of {off:.2g}; expected rows summing to 1")
    return array / array.sum(axis=-1, keepdims=True)
