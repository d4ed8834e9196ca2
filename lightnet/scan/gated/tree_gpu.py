"""Gated linear attention on Hopper GPUs, one decay per key channel, forward: chunks of 64 tokens in two kernels.

`_prepare` has all of a chunk that does not need the state, and so runs for all chunks at once: the scores by the tree
of products of `lightnet.scan.gated.chunk`, and queries and keys scaled to the start and to the end of the chunk.
`_march` then takes 64 columns of the values of one head through time: three products per chunk and no exponentials.

A product of decays is the exponential of a sum of log decays, each sum by itself: a product of a matrix of ones, which
says what is added to what, with the log decays in two parts of half precision, on the tensor cores. At one level of the
tree a token is either in a first half, and a key, or in a second half, and a query; so one scaled matrix has both, and
its product with its own transpose all scores of the level.

Per token and head of 128 channels with float32 decays 1,536 bytes must move; the two kernels move 2,824.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.scan.fade import fade
from lightnet.scan.gated import blocks_gpu as blocks
from lightnet.scan.gated.chunk import LEAST, adds, meet
from lightnet.typing import Array

MOST = 8  # chunks that a program prepares one after the other


def forward(
    q: Array, k: Array, v: Array, log_decay: Array, initial_state: Array, *, store: bool = False
) -> list[Array]:
    """Outputs and last state, and the states before each chunk in half precision (B, H, chunks, K, V) to be stored.

    Keys, values and decays of masked tokens are 0, a reset is `LEAST` or less.
    """
    scores, scaled, total = prepare(q, k, log_decay)
    body = partial(_march, pl.cdiv(v.shape[1], blocks.CHUNK), v.shape[2])
    return blocks.march(body, v, initial_state, store=store)(scores, scaled, total, v, initial_state)


def prepare(q: Array, k: Array, log_decay: Array) -> list[Array]:
    """What does not need the states.

    Returns:
        Scores (B, H, chunks, C, C), some chunks more than there are; keys scaled to the end of their chunk and behind
        them, as further heads, queries scaled to its start, (B, L, 2 H, K); sums of log decays (B, H, chunks, K).
    """
    (batch, length, heads, key), groups = log_decay.shape, k.shape[2]
    chunks = pl.cdiv(length, blocks.CHUNK)
    each = min(MOST, chunks)
    programs = pl.cdiv(chunks, each)
    square, tile = (blocks.CHUNK, blocks.CHUNK), hopper.tile(blocks.CHUNK, key)
    return plgpu.kernel(
        partial(_prepare, each, heads, heads // groups),
        out_type=[
            jax.ShapeDtypeStruct((batch, heads, programs * each, *square), jnp.bfloat16),
            jax.ShapeDtypeStruct((batch, length, 2 * heads, key), jnp.bfloat16),
            jax.ShapeDtypeStruct((batch, heads, programs * each, key), jnp.float32),
        ],
        # In half precision log decays have no second part.
        scratch_types=[
            plgpu.SMEM((key,), jnp.float32),
            hopper.tile(*square),
            tile,
            tile,
            *[tile] * (log_decay.dtype != tile.dtype),
        ],
        grid=(batch, heads, programs),
        grid_names=("batch", "head", "part"),
        kernel_name="prepare",
    )(q, k, log_decay)


class Chunk(NamedTuple):
    """What of a chunk lies in shared memory: what is fetched, its log decays in parts, and what is made of them."""

    q: Any
    k: Any
    decays: list[Any]
    scaled: Any
    scores: Any


def _prepare(each: int, heads: int, members: int, q: Any, k: Any, log_decay: Any, *refs: Any) -> None:
    """Some chunks of a head, one after the other."""
    scores_far, scaled_far, total_far, total, scores, scaled, *decays = refs
    batch, head, part = (lax.axis_index(name) for name in ("batch", "head", "part"))
    group = lax.div(head, jnp.int32(members))
    key = q.shape[-1]

    def chunk(index: Any, q: Any, k: Any, log_decay: Any) -> None:
        at = part * each + index[0]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for columns in hopper.parts_of(key):
            bounded = jnp.maximum(hopper.read(log_decay.at[:, columns]), LEAST)
            total[columns] = hopper.total(bounded, 0)
            write_in_parts(bounded, [half.at[:, columns] for half in decays])
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(total, total_far.at[batch, head, at])
        far = scaled_far.at[batch, pl.ds(at * blocks.CHUNK, blocks.CHUNK)]
        i, j = blocks.indices(blocks.CHUNK)
        alone = hopper.product(q, hopper.transposed(k))
        scores[...] = jnp.where(i == j, alone, 0.0).astype(jnp.bfloat16)

        def send(behind: Any) -> None:
            plgpu.copy_smem_to_gmem(scaled, far.at[:, head + behind * heads])

        level = partial(_level, Chunk(q, k, decays, scaled, scores), send)
        lax.fori_loop(0, levels() + 2, level, None)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(scores, scores_far.at[batch, head, at])

    plgpu.emit_pipeline(
        chunk,
        grid=(each,),
        in_specs=[
            blocks.block(key, lambda c: (batch, part * each + c, group, 0)),
            blocks.block(key, lambda c: (batch, part * each + c, group, 0)),
            blocks.block(key, lambda c: (batch, part * each + c, head, 0), log_decay.dtype),
        ],
        max_concurrent_steps=blocks.STAGES,
    )(q, k, log_decay)
    plgpu.wait_smem_to_gmem(0)


def levels() -> int:
    """Of the tree of a chunk."""
    return blocks.CHUNK.bit_length() - 1


def write_in_parts(x: Array, parts: list) -> None:
    """Write numbers as the sum of parts in half precision."""
    for part in parts:
        rounded = x.astype(jnp.bfloat16)
        part[...] = rounded
        x = x - rounded.astype(jnp.float32)


def _level(here: Chunk, send: Callable, number: Any, _: None) -> None:
    """Of the tree: scores; behind the last, keys scaled to the end of the chunk, then queries to its start."""
    span = lax.shift_left(jnp.int32(1), jnp.minimum(number, levels()))
    behind = number - levels()
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    _scale(here, span, jnp.maximum(behind, 0) * blocks.CHUNK)

    @pl.when(behind < 0)
    def add_scores() -> None:
        i, j = blocks.indices(blocks.CHUNK)
        found = hopper.product(here.scaled, hopper.transposed(here.scaled)).astype(jnp.bfloat16)
        here.scores[...] = jnp.where(meet(i, j, span), found, hopper.load(here.scores))

    pl.when(behind >= 0)(lambda: send(behind))


def _scale(here: Chunk, span: Any, before: Any) -> None:
    """Write queries in second halves and keys in first halves, times the decays until the middle of their block."""
    for columns in hopper.parts_of(here.scaled.shape[1]):
        decay, _ = scale_of([half.at[:, columns] for half in here.decays], span, before)
        second = in_second_half(columns.size, span, before)
        x = jnp.where(second, hopper.load(here.q.at[:, columns]), hopper.load(here.k.at[:, columns]))
        here.scaled[:, columns] = (decay * x.astype(jnp.float32)).astype(jnp.bfloat16)
    plgpu.commit_smem()


def scale_of(decays: list, span: Any, before: Any) -> tuple[Array, Array]:
    """The decays between each token and the middle of its block.

    Args:
        decays: parts of the log decays in half precision, to be added.
        span: tokens of half a block.
        before: tokens before the chunk, for the place in a block.

    Returns:
        These (C, columns), and the transpose of the matrix of ones that adds their logarithms, in half precision.
    """
    i, j = (x + before for x in blocks.indices(blocks.CHUNK))
    ones, turned = (jnp.where(x, 1.0, 0.0).astype(jnp.bfloat16) for x in (adds(i, j, span), adds(j, i, span)))
    return jnp.exp(hopper.product(ones, *decays)), turned


def in_second_half(columns: int, span: Any, before: Any) -> Array:
    """Whether a row's token is in the second half of its block."""
    return ((blocks.indices(columns)[0] + before) & span) != 0


def _march(chunks: int, heads: int, scores: Any, scaled: Any, total: Any, v: Any, initial: Any, *refs: Any) -> None:
    """All chunks of 64 columns of a head."""
    o, final, *before, narrow, wide = refs  # the state in half precision, and outputs
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "columns"))
    columns = pl.ds(tile * blocks.COLUMNS, blocks.COLUMNS)
    key = scaled.shape[-1]
    parts = hopper.parts_of(key)

    def chunk(
        index: Any, scores: Any, start: Any, end: Any, total: Any, v: Any, state: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        log_decays = [hopper.load(total.at[part], hopper.PER_ROW) for part in parts]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the outputs before have left
        blocks.write_state(narrow, state)
        plgpu.commit_smem()
        for ref in before:
            plgpu.copy_smem_to_gmem(narrow, ref.at[batch, head, index[0], :, columns])
        wide[...] = hopper.add_product(hopper.product(scores, v), start, narrow).astype(jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(wide, o.at[batch, pl.ds(index[0] * blocks.CHUNK, blocks.CHUNK), head, columns])
        faded = [fade(blocks.per_row(x), y) for x, y in zip(log_decays, state, strict=True)]
        return tuple(
            hopper.add_product(x, hopper.transposed(end.at[:, part]), v) for part, x in zip(parts, faded, strict=True)
        )

    state = plgpu.emit_pipeline(
        chunk,
        grid=(chunks,),
        in_specs=[
            blocks.square_block(lambda c: (batch, head, c, 0, 0)),
            blocks.block(key, lambda c: (batch, c, head + heads, 0)),
            blocks.block(key, lambda c: (batch, c, head, 0)),
            plgpu.BlockSpec((None, None, None, key), lambda c: (batch, head, c, 0)),
            blocks.block(blocks.COLUMNS, lambda c: (batch, c, head, tile)),
        ],
        max_concurrent_steps=blocks.STAGES,
        init_carry=blocks.state_of(initial.at[batch, head, :, columns]),
    )(scores, scaled, scaled, total, v)
    blocks.write_state(final.at[batch, head, :, columns], state)
    plgpu.wait_smem_to_gmem(0)
