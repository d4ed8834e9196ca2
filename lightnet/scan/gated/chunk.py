"""Gated linear attention inside one chunk, with matrix products, for any backend.

Of C tokens that a state S enters, with A_j..i the product of the decays of the tokens j to i,

    o_i = (q_i * A_1..i)^T S  +  sum_{j <= i} <q_i * A_j+1..i, k_j> v_j,
    S'  = diag(A_1..C) S  +  sum_j (k_j * A_j+1..C) v_j^T.

All arrays are (..., C, size), with leading axes that broadcast against each other, so that a query shared by a group of
heads is never repeated. No decay is ever divided by, and every factor is at most 1: nothing overflows, what underflows
is 0 in truth as well, and a decay of 0 is exact, in the gradient too.

One decay per key channel: a tree of products. For blocks of s = 1, 2, 4, ... tokens, the rows in the second half of a
block of 2s meet the columns in its first half. The product between them is split at the middle of the block, so that
one matrix product gives all of these scores; the products themselves double in length with one multiplication.

One decay for a whole head: the C x C matrix of products is the exponential of sums of log decays, masked beforehand.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import Precision

from lightnet.scan.fade import fade
from lightnet.typing import Array

# exp of this is 0 in every precision, and it stays finite when it is multiplied by 0.
LOG_ZERO = -1e4
# So is that of a sum that contains this; multiples of 1 / FINE down to it add up exactly in float32, 256 of them.
LEAST, FINE = -128.0, 256.0

TwoParts = Array | tuple[Array, Array]


class GatedSummary(NamedTuple):
    """Of a stretch: the product of its decays (B, H, K or 1), and the state (B, H, K, V) behind it from 0."""

    decay: Array
    state: Array


def combine(earlier: GatedSummary, later: GatedSummary) -> GatedSummary:
    """The summary of two stretches, one behind the other.

    Example:
        >>> one = GatedSummary(jnp.full((1, 1, 1), 0.5), jnp.ones((1, 1, 1, 1)))
        >>> combine(one, one).decay.item(), combine(one, one).state.item()
        (0.25, 1.5)
    """
    return GatedSummary(earlier.decay * later.decay, enter(later, earlier.state))


def enter(summary: GatedSummary, state: Array) -> Array:
    """The state behind a stretch that `state` enters."""
    return summary.decay[..., None] * state + summary.state


def gated_chunk(q: Array, k: Array, v: Array, log_decay: Array, state: Array) -> tuple[Array, Array]:
    """Outputs of one chunk and the state behind it.

    Args:
        q: queries (..., C, K), C a power of two.
        k: keys (..., C, K).
        v: values (..., C, V).
        log_decay: (..., C, K) or (..., C, 1).
        state: (..., K, V) before the chunk.

    Returns:
        o (..., C, V) and the state (..., K, V).

    Example:
        >>> one = jnp.ones((2, 1))
        >>> o, state = gated_chunk(one, one, one, jnp.log(0.5 * one), one[:1])
        >>> o[:, 0].tolist(), state.tolist()
        ([1.5, 1.75], [[1.75]])
    """
    form = _scalar_chunk if log_decay.shape[-1] == 1 else _vector_chunk
    return form(q, k, v, log_decay, state)


def stretch(k: Array, v: Array, log_decay: Array) -> GatedSummary:
    """What one chunk does to the state that enters it: `gated_chunk` without queries."""
    if log_decay.shape[-1] == 1:
        between = decay_products(log_decay)
        return GatedSummary(between[..., -1, :1], _matmul(k.mT, between[..., -1, 1:, None] * v))
    _, end = halves(jnp.exp(log_decay))[-1]
    return GatedSummary(jnp.exp(log_decay.sum(axis=-2)), _matmul((k * end).mT, v))


def _vector_chunk(q: Array, k: Array, v: Array, log_decay: Array, state: Array) -> tuple[Array, Array]:
    # Every head scales its own copy anyway; so the gradients of a group are added up once, not at every level.
    q, k = (jnp.broadcast_to(x, log_decay.shape) for x in (q, k))
    factors = halves(jnp.exp(log_decay))
    start, end = factors[-1]
    o = _matmul(tree_scores(q, k, factors), v) + _matmul(q * start, state)
    return o, _past(log_decay, state, _matmul((k * end).mT, v))


def _scalar_chunk(q: Array, k: Array, v: Array, log_decay: Array, state: Array) -> tuple[Array, Array]:
    between = decay_products(log_decay)
    start, within = between[..., :1], between[..., 1:]
    o = _matmul(_matmul(q, k.mT) * within, v) + start * _matmul(q, state)
    return o, _past(log_decay, state, _matmul(k.mT, within[..., -1, :, None] * v))


def halves(decay: Array) -> list[tuple[Array, Array]]:
    """Products of decays from the start, and to the end, of blocks of 1, 2, 4, ..., C tokens.

    Args:
        decay: (..., C, K), C a power of two.

    Returns:
        For each block size, (..., C, K) each: the product from the first token of the block to this one, both included;
        and the product from the token after this one to the last of the block.

    Example:
        >>> start, end = halves(jnp.array([[0.5], [0.25]]))[-1]
        >>> start[:, 0].tolist(), end[:, 0].tolist()
        ([0.5, 0.125], [0.25, 1.0])
    """
    length, size = decay.shape[-2:]
    start, end = decay, jnp.ones_like(decay)
    factors, span = [(start, end)], 1
    while span < length:
        # All leading axes in one, and no axes of size 1: of arrays with 7 axes or more, which `jax.vmap` adds to, the
        # gradient of these products sums over one, which ends in a segmentation fault of XLA on CPU (JAX 0.10).
        (left, right), (to_left, to_right) = (jnp.unstack(x.reshape(-1, 2, span, size), axis=1) for x in (start, end))
        start = jnp.stack([left, right * left[:, -1:]], axis=1).reshape(decay.shape)
        end = jnp.stack([to_left * right[:, -1:], to_right], axis=1).reshape(decay.shape)
        factors.append((start, end))
        span *= 2
    return factors


def tree_scores(q: Array, k: Array, factors: list[tuple[Array, Array]]) -> Array:
    """Scores <q_i * A_j+1..i, k_j> for j <= i, else 0.

    Args:
        q: (..., C, K).
        k: (..., C, K).
        factors: from `halves`.

    Returns:
        (..., C, C).
    """
    row, column = _rows_and_columns(q.ndim, q.shape[-2], q.shape[-2])
    scores = jnp.where(row == column, (q * k).sum(axis=-1, keepdims=True), 0)
    for level, (start, end) in enumerate(factors[:-1]):
        scores = scores + jnp.where(meet(row, column, 1 << level), _matmul(q * start, (k * end).mT), 0)
    return scores


def meet(row: Array, column: Array, span: int | Array) -> Array:
    """Whether row and column are in the second and in the first half of the same block of 2 span tokens."""
    same = (row & -2 * span) == (column & -2 * span)
    return same & ((row & span) != 0) & ((column & span) == 0)


def adds(row: Array, column: Array, span: int | Array) -> Array:
    """Whether, where both `meet`, the log decay of the column's token is among those that scale the row's.

    A token in a second half is scaled by the decays from the first of that half to its own, one in a first half by
    those behind its own until the last of that half.

    Example:
        >>> adds(jnp.arange(4)[:, None], jnp.arange(4)[None], 2).astype(int).tolist()
        [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    return ((row & -span) == (column & -span)) & ((column <= row) == ((row & span) != 0))


def decay_products(log_decay: Array) -> Array:
    """Products of scalar decays between any two tokens of a chunk.

    Each sum of log decays is taken by itself, without differences of cumulative sums, which would lose digits next to a
    strong decay and all of them behind a decay of 0.

    Args:
        log_decay: (..., C, 1).

    Returns:
        (..., C, 1 + C): at [i, 0] the product from the first token to i; at [i, 1 + j] that of j + 1 to i, or 0.

    Example:
        >>> decay_products(jnp.log(jnp.array([[0.5], [0.25]]))).tolist()
        [[0.5, 1.0, 0.0], [0.125, 0.25, 1.0]]
    """
    length = log_decay.shape[-2]
    row, column = _rows_and_columns(log_decay.ndim, length, length)
    until = (column <= row).astype(log_decay.dtype)
    row, origin = _rows_and_columns(log_decay.ndim, length, length + 1)
    since = jnp.where(origin <= row, jnp.maximum(log_decay, LOG_ZERO), 0)
    return jnp.exp(jnp.where(origin <= row + 1, _matmul(until, since), -jnp.inf))


def split_sums(log_decay: Array) -> Array:
    """Sums of log decays from the first token to each, in two parts whose differences keep what the sums would lose.

    The first part is a sum of multiples of 1 / `FINE`, exact in float32, as its differences are; the second has what
    is missing, at most 1 / 512 per token. So 0 and strong decays, which are `LEAST` here, do no harm behind them.

    Args:
        log_decay: (..., C), C at most 256.

    Returns:
        (..., 2, C).

    Example:
        >>> split_sums(jnp.array([-jnp.inf, -0.501, -0.5])).tolist()[0]
        [-128.0, -128.5, -129.0]
    """
    bounded = jnp.maximum(log_decay, LEAST)
    coarse = jnp.round(bounded * FINE) / FINE
    return jnp.stack([jnp.cumsum(x, axis=-1) for x in (coarse, bounded - coarse)], axis=-2)


def weights(row: TwoParts, column: TwoParts, causal: Array) -> Array:
    """Products of decays behind the token of a column until that of a row, as in `decay_products`, or 0.

    Args:
        row: the parts of `split_sums`, along rows.
        column: the same along columns.
        causal: whether the row's token is not before that of the column.

    Returns:
        A matrix.

    Example:
        >>> sums = split_sums(jnp.log(jnp.array([0.5, 0.25])))
        >>> weights(sums[:, :, None], sums[:, None], jnp.array([[True, False], [True, True]])).tolist()
        [[1.0, 0.0], [0.25, 1.0]]
    """
    log_product = (row[0] - column[0]) + (row[1] - column[1])
    return jnp.exp(jnp.where(causal, jnp.minimum(log_product, 0.0), -jnp.inf))


def _past(log_decay: Array, state: Array, added: Array) -> Array:
    """The state behind the chunk; the floor keeps a decay of 0 differentiable."""
    return fade(jnp.maximum(log_decay.sum(axis=-2), LOG_ZERO)[..., None], state, added)


def _rows_and_columns(ndim: int, rows: int, columns: int) -> tuple[Array, Array]:
    """Indices (1, ..., rows, 1) and (1, ..., 1, columns)."""
    lead = (1,) * (ndim - 2)
    return jnp.arange(rows).reshape(*lead, rows, 1), jnp.arange(columns).reshape(*lead, 1, columns)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
