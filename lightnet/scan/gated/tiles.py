"""One chunk of gated linear attention with a decay per key channel, in tiles of 8 tokens as TPUs hold them.

The tree of products of `lightnet.scan.gated.chunk`, on lists of tiles (8, K). Within a tile a token meets its partner
by a rotation; from 8 tokens on, the total of a block is the same in every row of a tile, so that a level is two
products of whole tiles, and only the rows of the second halves enter its matrix product.

Every phase is made for all heads that are given before the next one, so that they fill each other's waits.

All functions are differentiable in place: matrix products and rotations state their own transposes, which are such
products and rotations again. Matrix products round their factors to bfloat16 (`half`), or are exact to float32.
The state is transposed, (V, K): so its decays lie along a row.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.fade import fade
from lightnet.scan.gated.chunk import LOG_ZERO, meet
from lightnet.scan.kernels import matmul
from lightnet.typing import Array

ROWS = 8
Tiles = list[Array]


class Products(NamedTuple):
    """Of decays, for blocks of some number of tokens.

    Attributes:
        start: from the first token of its block to this one.
        end: from the token behind this one to the last of its block.
        total: of the block; from 8 tokens on kept at its first tile alone.
    """

    start: Tiles
    end: Tiles
    total: dict[int, Array]


def output_and_state(
    q: list[Tiles], k: list[Tiles], v: list[Array], log_decay: list[Tiles], state: list[Array], *, half: bool
) -> tuple[list[Array], list[Array]]:
    """Outputs (C, V) of one chunk and the states (V, K) behind it, for each head.

    Args:
        q: C / 8 tiles (8, K) of queries, a power of two of them.
        k: keys.
        v: (C, V).
        log_decay: at most 0; what is below `LOG_ZERO` is a reset.
        state: (V, K) before the chunk.
        half: round the factors of matrix products to bfloat16.
    """
    scored = [_scores(*x, half) for x in zip(q, k, log_decay, strict=True)]
    over_chunk = [products for _, products in scored]
    now = [matmul(_joined(scores), x, "nn", half) for (scores, _), x in zip(scored, v, strict=True)]
    past = [
        matmul(_joined([x * y for x, y in zip(tiles, products.start, strict=True)]), before, "nt", half)
        for tiles, products, before in zip(q, over_chunk, state, strict=True)
    ]
    after = [_past(*x, half) for x in zip(k, v, log_decay, over_chunk, state, strict=True)]
    return [x + y for x, y in zip(now, past, strict=True)], after


def state_behind(
    k: list[Tiles], v: list[Array], log_decay: list[Tiles], state: list[Array], *, half: bool
) -> list[Array]:
    """The states alone."""
    return [_state(*x, half) for x in zip(k, v, log_decay, state, strict=True)]


def _state(k: Tiles, v: Array, log_decay: Tiles, state: Array, half: bool) -> Array:
    products, span = _single(log_decay), 1
    while span < len(k) * ROWS:
        products, span = _doubled(products, span), 2 * span
    return _past(k, v, log_decay, products, state, half)


def _past(k: Tiles, v: Array, log_decay: Tiles, products: Products, state: Array, half: bool) -> Array:
    added = matmul(v, _joined([x * y for x, y in zip(k, products.end, strict=True)]), "tn", half)
    total = sum(log_decay[1:], log_decay[0]).sum(axis=0, keepdims=True)
    return fade(_at_least(total), state, added)


def _scores(q: Tiles, k: Tiles, log_decay: Tiles, half: bool) -> tuple[Tiles, Products]:
    """Rows of the scores <q_i * A_j+1..i, k_j> for j <= i, else 0, in tiles (8, C); and the products over the chunk."""
    count = len(q)
    row, column = (lax.broadcasted_iota(jnp.int32, (ROWS, count * ROWS), axis) for axis in range(2))
    scores = [
        jnp.where(column == row + i * ROWS, (x * y).sum(axis=-1, keepdims=True), 0.0)
        for i, (x, y) in enumerate(zip(q, k, strict=True))
    ]
    products, span = _single(log_decay), 1
    while span < count * ROWS:
        second = [i for i in range(count) if span < ROWS or i * ROWS & span]
        first = [i for i in range(count) if span < ROWS or not i * ROWS & span]
        later = [q[i] * products.start[i] for i in second]
        earlier = [k[i] * products.end[i] if i in first else jnp.zeros_like(k[i]) for i in range(count)]
        for i, part in zip(second, _split(matmul(_joined(later), _joined(earlier), "nt", half)), strict=True):
            scores[i] += jnp.where(meet(row + i * ROWS, column, span), part, 0.0)
        products, span = _doubled(products, span), 2 * span
    return scores, products


def _single(log_decay: Tiles) -> Products:
    """For blocks of one token."""
    decay = [jnp.exp(_at_least(x)) for x in log_decay]
    return Products(decay, [jnp.ones_like(x) for x in decay], dict(enumerate(decay)))


def _doubled(products: Products, span: int) -> Products:
    """For blocks twice as long as `span` tokens."""
    start, end, total = products
    count = len(start)
    if span < ROWS:
        second = (lax.broadcasted_iota(jnp.int32, start[0].shape, 0) & span) != 0
        other = {i: _partner(x, span) for i, x in total.items()}
        start = [x * jnp.where(second, other[i], 1.0) for i, x in enumerate(start)]
        end = [x * jnp.where(second, 1.0, other[i]) for i, x in enumerate(end)]
        return Products(start, end, {i: x * other[i] for i, x in total.items()})
    tiles = span // ROWS
    block = [i // tiles * tiles for i in range(count)]
    start = [x * total[block[i] - tiles] if i & tiles else x for i, x in enumerate(start)]
    end = [x if i & tiles else x * total[block[i] + tiles] for i, x in enumerate(end)]
    return Products(start, end, {i: total[i] * total[i + tiles] for i in range(0, count, 2 * tiles)})


def _at_least(log_decay: Array) -> Array:
    """Resets as finite numbers; their gradient is exactly 0."""
    return jnp.where(log_decay > LOG_ZERO, log_decay, LOG_ZERO)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _partner(x: Array, span: int) -> Array:
    """Row i ^ span of a tile, in the place of row i."""
    up = pltpu.roll(x, span, 0)
    if 2 * span == ROWS:
        return up
    row = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where((row & span) != 0, up, pltpu.roll(x, ROWS - span, 0))


_partner.defvjp(lambda x, span: (_partner(x, span), None), lambda span, _, bar: (_partner(bar, span),))


def _joined(tiles: Tiles) -> Array:
    return tiles[0] if len(tiles) == 1 else jnp.concatenate(tiles, axis=0)


@jax.custom_vjp
def _split(x: Array) -> Tiles:
    """Tiles of 8 rows. The transpose of a slice alone would be an array of zeros around it."""
    return tiles_of(x)


_split.defvjp(lambda x: (_split(x), None), lambda _, bars: (_joined(bars),))


def tiles_of(x: Any) -> Tiles:
    """(C, K) as C / 8 tiles (8, K)."""
    return [x[i : i + ROWS] for i in range(0, x.shape[0], ROWS)]
