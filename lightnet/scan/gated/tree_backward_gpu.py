"""The gradient of gated linear attention on Hopper GPUs, one decay per key channel: three kernels.

`_march` takes the gradient of the state from the last chunk to the first, and stores it behind each chunk in half
precision, as the forward pass stored the states. `_of_states` has the gradients of the scores, of the scaled queries
and keys, and of the values; `_of_tree` those behind them, 64 channels at a time, level by level, since no channel of a
scaled key or query depends on another. What the forward pass prepared is prepared again.

Every gradient is a sum of products: nothing is divided by a decay, and no sums are subtracted from each other.

Per token and head of 128 channels with float32 decays 2,816 bytes must move, 0.94 ns at 3 TB/s; with the states of both
directions, the scores and what is scaled, which are written and read, it is three times as many.
"""

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
from lightnet.scan.gated.chunk import LEAST, meet
from lightnet.scan.gated.tree_gpu import MOST, in_second_half, levels, prepare, scale_of, write_in_parts
from lightnet.typing import Array

# Newer releases look for layouts by themselves, and would take minutes here.
LANES = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)


def backward(
    q: Array, k: Array, v: Array, log_decay: Array, before: Array, do: Array, dfinal: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients of queries, keys, values, log decays and the initial state.

    What stands at masked tokens is 0, a reset is `LEAST` or less. Heads of a group give one gradient each, which are
    summed in float32.
    """
    (batch, length, heads, value), (groups, key) = v.shape, k.shape[2:]
    chunks, members = before.shape[2], heads // groups
    scores, scaled, total = prepare(q, k, log_decay)
    tile = hopper.tile(blocks.CHUNK, blocks.COLUMNS)
    run = blocks.march_back(partial(_march, chunks, heads), before, dfinal, tiles=1)
    behind, dinitial = run(scaled, do, total, dfinal)
    each = min(MOST, chunks)
    programs = pl.cdiv(chunks, each)
    state = hopper.tile(key, value)
    dscores, dscaled, dv, both = plgpu.kernel(
        partial(_of_states, each, heads),
        out_type=[scores, scaled, v, total],
        scratch_types=[tile, plgpu.SMEM((key,), jnp.float32), state, state, plgpu.Barrier(num_arrivals=2)],
        grid=(batch, heads, programs),
        grid_names=("batch", "head", "part"),
        kernel_name="of_states",
        compiler_params=LANES,
    )(scores, scaled, v, do, before, behind)
    tiles = key // blocks.COLUMNS
    of_keys = jax.ShapeDtypeStruct((batch, length, heads, key), jnp.bfloat16)
    wide = jax.ShapeDtypeStruct(of_keys.shape, jnp.float32)
    dq, dk, dlog = plgpu.kernel(
        partial(_of_tree, each, heads, members, tiles),
        out_type=[of_keys, of_keys, wide],
        scratch_types=[
            *[hopper.tile(blocks.CHUNK, blocks.CHUNK)],
            *[tile] * 3,
            hopper.tile(blocks.CHUNK, blocks.COLUMNS, dtype=jnp.float32),
            *[tile] * (1 + (log_decay.dtype != tile.dtype)),
        ],
        grid=(batch, heads * tiles, programs),
        grid_names=("batch", "tile", "part"),
        kernel_name="of_tree",
        compiler_params=LANES,
    )(q, k, log_decay, dscores, dscaled, both * jnp.exp(total))
    dq, dk = (x.astype(jnp.float32).reshape(*k.shape[:3], members, key).sum(axis=3).astype(k.dtype) for x in (dq, dk))
    return dq, dk, dv, jnp.where(log_decay > LEAST, dlog, 0).astype(log_decay.dtype), dinitial


def _march(
    chunks: int, heads: int, scaled: Any, do: Any, total: Any, last: Any, behind: Any, first: Any, narrow: Any
) -> None:
    """All chunks of 64 columns of a head, from the last to the first."""
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "columns"))
    columns = pl.ds(tile * blocks.COLUMNS, blocks.COLUMNS)
    key = scaled.shape[-1]
    parts = hopper.parts_of(key)

    def chunk(index: Any, start: Any, do: Any, total: Any, slope: tuple[Array, ...]) -> tuple[Array, ...]:
        log_decays = [hopper.load(total.at[part], hopper.PER_ROW) for part in parts]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        blocks.write_state(narrow, slope)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(narrow, behind.at[batch, head, chunks - 1 - index[0], :, columns])
        faded = [fade(blocks.per_row(x), y) for x, y in zip(log_decays, slope, strict=True)]
        return tuple(
            hopper.add_product(x, hopper.transposed(start.at[:, part]), do)
            for part, x in zip(parts, faded, strict=True)
        )

    slope = plgpu.emit_pipeline(
        chunk,
        grid=(chunks,),
        in_specs=[
            blocks.block(key, lambda c: (batch, chunks - 1 - c, head + heads, 0)),
            blocks.block(blocks.COLUMNS, lambda c: (batch, chunks - 1 - c, head, tile)),
            plgpu.BlockSpec((None, None, None, key), lambda c: (batch, head, chunks - 1 - c, 0)),
        ],
        max_concurrent_steps=blocks.STAGES,
        init_carry=blocks.state_of(last.at[batch, head, :, columns]),
    )(scaled, do, total)
    blocks.write_state(first.at[batch, head, :, columns], slope)
    plgpu.wait_smem_to_gmem(0)


def _of_states(each: int, heads: int, scores: Any, scaled: Any, v: Any, do: Any, *refs: Any) -> None:
    """Some chunks of a head, one after the other. States come by copies of their own, once they are no longer used."""
    before_far, behind_far, dscores, dscaled, dv, both_far, out, both, before, behind, arrived = refs
    batch, head, part = (lax.axis_index(name) for name in ("batch", "head", "part"))
    key, value = scaled.shape[-1], v.shape[-1]

    def fetch(at: Any) -> None:
        plgpu.copy_gmem_to_smem(before_far.at[batch, head, at], before, arrived)
        plgpu.copy_gmem_to_smem(behind_far.at[batch, head, at], behind, arrived)

    def chunk(index: Any, scores: Any, keys: Any, v: Any, do: Any) -> None:
        at = part * each + index[0]
        tokens = pl.ds(at * blocks.CHUNK, blocks.CHUNK)
        blocks.send(hopper.product(do, hopper.transposed(v)), out, dscores.at[batch, head, at])
        plgpu.barrier_wait(arrived)
        for columns in hopper.parts_of(value):
            slope = hopper.product(keys, behind.at[:, columns])
            slope = hopper.add_product(slope, hopper.transposed(scores), do.at[:, columns])
            blocks.send(slope, out, dv.at[batch, tokens, head, columns])
        for rows in hopper.parts_of(key):
            slope = hopper.product(v, hopper.transposed(behind.at[rows, :]))
            blocks.send(slope, out, dscaled.at[batch, tokens, head, rows])
            slope = hopper.product(do, hopper.transposed(before.at[rows, :]))
            blocks.send(slope, out, dscaled.at[batch, tokens, head + heads, rows])
            found = []
            for columns in hopper.parts_of(value):
                x, y = (hopper.read(ref.at[rows, columns]) for ref in (before, behind))
                found.append(hopper.total(x * y, 1))
            both[rows] = sum(found[1:], found[0])
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(both, both_far.at[batch, head, at])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        pl.when(index[0] < each - 1)(lambda: fetch(jnp.minimum(at + 1, before_far.shape[2] - 1)))

    fetch(jnp.minimum(part * each, before_far.shape[2] - 1))
    plgpu.emit_pipeline(
        chunk,
        grid=(each,),
        in_specs=[
            blocks.square_block(lambda c: (batch, head, part * each + c, 0, 0)),
            *[blocks.block(size, lambda c: (batch, part * each + c, head, 0)) for size in (key, value, value)],
        ],
        max_concurrent_steps=blocks.STAGES,
    )(scores, scaled, v, do)
    plgpu.wait_smem_to_gmem(0)


class Chunk(NamedTuple):
    """What of 64 channels of a chunk lies in shared memory: fetched, log decays in parts, what products read."""

    q: Any
    k: Any
    dscores: Any
    dkeys: Any
    dqueries: Any
    decays: list[Any]
    pairs: Any
    scaled: Any
    slopes: Any


def _of_tree(each: int, heads: int, members: int, tiles: int, q: Any, k: Any, log_decay: Any, *refs: Any) -> None:
    """Some chunks of 64 channels of a head, one after the other."""
    dscores_far, dscaled_far, both_far, dq_far, dk_far, dlog_far, pairs, scaled, slopes, out, wide, *decays = refs
    batch, part = lax.axis_index("batch"), lax.axis_index("part")
    head = lax.div(lax.axis_index("tile"), jnp.int32(tiles))
    tile = lax.rem(lax.axis_index("tile"), jnp.int32(tiles))
    group = lax.div(head, jnp.int32(members))
    columns = pl.ds(tile * blocks.COLUMNS, blocks.COLUMNS)

    def chunk(index: Any, q: Any, k: Any, log_decay: Any, dscores: Any, dkeys: Any, dqueries: Any, both: Any) -> None:
        here = Chunk(q, k, dscores, dkeys, dqueries, decays, pairs, scaled, slopes)
        mine = batch, pl.ds((part * each + index[0]) * blocks.CHUNK, blocks.CHUNK), head, columns
        write_in_parts(jnp.maximum(hopper.read(log_decay), LEAST), decays)
        plgpu.commit_smem()
        sums = lax.fori_loop(0, levels() + 2, partial(_level, here), _before_levels(here, both))
        for x, near, far in zip(sums, (out, slopes, wide), (dq_far, dk_far, dlog_far), strict=True):
            plgpu.wait_smem_to_gmem(2, wait_read_only=True)
            near[...] = x.astype(near.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(near, far.at[mine])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    of_head = lambda c: (batch, part * each + c, head, tile)  # noqa: E731
    of_group = lambda c: (batch, part * each + c, group, tile)  # noqa: E731
    plgpu.emit_pipeline(
        chunk,
        grid=(each,),
        in_specs=[
            blocks.block(blocks.COLUMNS, of_group),
            blocks.block(blocks.COLUMNS, of_group),
            blocks.block(blocks.COLUMNS, of_head, log_decay.dtype),
            blocks.square_block(lambda c: (batch, head, part * each + c, 0, 0)),
            blocks.block(blocks.COLUMNS, of_head),
            blocks.block(blocks.COLUMNS, lambda c: (batch, part * each + c, head + heads, tile)),
            plgpu.BlockSpec((None, None, None, blocks.COLUMNS), lambda c: (batch, head, part * each + c, tile)),
        ],
        max_concurrent_steps=blocks.STAGES,
    )(q, k, log_decay, dscores_far, dscaled_far, dscaled_far, both_far)
    plgpu.wait_smem_to_gmem(0)


def _before_levels(here: Chunk, both: Any) -> tuple[Array, Array, Array]:
    """Gradients of queries and keys from scores of tokens with themselves; of log decays, from both states."""
    i, j = blocks.indices(blocks.CHUNK)
    alone = hopper.total(jnp.where(i == j, hopper.read(here.dscores), 0.0), 1)
    dq, dk = (blocks.per_row(alone) * hopper.read(x) for x in (here.k, here.q))
    dlog = hopper.of_columns(hopper.load(both, hopper.PER_COLUMN), blocks.CHUNK)
    return dq, dk, plgpu.layout_cast(dlog, hopper.MATRIX)


def _level(here: Chunk, number: Any, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Of the tree; behind the last, keys scaled to the end of the chunk, then queries to its start."""
    dq, dk, dlog = sums
    behind = number - levels()
    span, before = lax.shift_left(jnp.int32(1), jnp.minimum(number, levels())), jnp.maximum(behind, 0)
    decay, adding = scale_of(here.decays, span, before * blocks.CHUNK)
    second = in_second_half(blocks.COLUMNS, span, before * blocks.CHUNK)
    x = decay * jnp.where(second, hopper.load(here.q), hopper.load(here.k)).astype(jnp.float32)
    here.scaled[...] = x.astype(jnp.bfloat16)
    i, j = blocks.indices(blocks.CHUNK)
    found = hopper.load(here.dscores)
    here.pairs[...] = jnp.where(meet(i, j, span), found, jnp.zeros_like(found))
    plgpu.commit_smem()
    whole = jnp.where(second, hopper.load(here.dqueries), hopper.load(here.dkeys)).astype(jnp.float32)
    dx = jnp.where(behind < 0, jnp.zeros_like(whole), whole)
    dx = hopper.add_product(dx, here.pairs, here.scaled)
    dx = hopper.add_product(dx, hopper.transposed(here.pairs), here.scaled)
    here.slopes[...] = (dx * x).astype(jnp.bfloat16)
    plgpu.commit_smem()
    dlog = hopper.add_product(dlog, adding, here.slopes)
    return dq + jnp.where(second, decay * dx, 0.0), dk + jnp.where(second, 0.0, decay * dx), dlog
