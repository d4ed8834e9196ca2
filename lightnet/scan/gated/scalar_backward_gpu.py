"""The gradient of gated linear attention on Hopper GPUs, one decay per head: two kernels.

`_march` takes the gradient of the state from the last chunk to the first, 64 columns of the values of a head at a
time, and stores it behind each chunk in half precision, as the forward pass stored the states. `_gradients` then has
all that it needs of a chunk, for all chunks at once: per chunk twelve products on the tensor cores.

The gradient of a log decay is the sum over all pairs of a token and a later one, or a state, between which it stands.
Each kind of pair leaves one number per token, `MARKS`; sums of these over the tokens of a chunk are left to XLA.

Per token and head of 128 channels 1,792 bytes must move; with the states of both directions in half precision, 512
bytes each, which are written and read, it is twice as many and more.
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
from lightnet.scan.gated.chunk import LEAST
from lightnet.scan.gated.scalar_gpu import pair, sums_of_chunks, weights_of_chunk
from lightnet.typing import Array

VALUES = 128  # at most so large, for which two chunks and the states fit the shared memory
MOST = 8  # chunks that a program takes one after the other
# Pairs of tokens by the later one, and by the earlier one; the state before with a token; a token with the state
# behind; both states.
MARKS = ("later", "earlier", "before", "behind", "both")


def backward(
    q: Array, k: Array, v: Array, log_decay: Array, before: Array, do: Array, dfinal: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients of queries, keys, values, log decays and the initial state.

    What stands at masked tokens is 0, a reset is `LEAST` or less. Heads of a group give one gradient each, which are
    summed in float32.
    """
    (batch, length, heads, value), (groups, key) = v.shape, k.shape[2:]
    chunks = before.shape[2]
    members = heads // groups
    sums = sums_of_chunks(log_decay, chunks)
    tile = hopper.tile(blocks.CHUNK, blocks.COLUMNS)
    run = blocks.march_back(partial(_march, chunks, members), before, dfinal, tiles=2)
    behind, dinitial = run(q, do, sums, dfinal)
    each = min(MOST, chunks)
    programs = pl.cdiv(chunks, each)
    of_keys = jax.ShapeDtypeStruct((batch, length, heads, key), jnp.bfloat16)
    marks = (len(MARKS), blocks.CHUNK)
    square, state = hopper.tile(blocks.CHUNK, blocks.CHUNK), hopper.tile(key, value)
    dq, dk, dv, found = plgpu.kernel(
        partial(_gradients, each, members),
        out_type=[of_keys, of_keys, v, jax.ShapeDtypeStruct((batch, heads, programs * each, *marks), jnp.float32)],
        scratch_types=[
            square,
            square,
            tile,
            plgpu.SMEM(marks, jnp.float32),
            state,
            state,
            plgpu.Barrier(num_arrivals=2),
        ],
        grid=(batch, heads, programs),
        grid_names=("batch", "head", "part"),
        kernel_name="gradients",
        # Newer releases look for layouts by themselves, and would take minutes here.
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(q, k, v, do, sums, before, behind)
    dq, dk = (x.astype(jnp.float32).reshape(*k.shape[:3], members, key).sum(axis=3).astype(k.dtype) for x in (dq, dk))
    dlog = _of_log_decays(found[:, :, :chunks], sums).reshape(batch, heads, -1)[..., :length].swapaxes(1, 2)[..., None]
    return dq, dk, dv, jnp.where(log_decay > LEAST, dlog, 0).astype(log_decay.dtype), dinitial


def _of_log_decays(marks: Array, sums: Array) -> Array:
    """From `MARKS` (B, H, chunks, 5, C): all that stands before a token with all from this one on."""
    later, earlier, before, behind, both = (marks[..., i, :] for i in range(len(MARKS)))
    from_here = jnp.flip(jnp.cumsum(jnp.flip(later - earlier + before, axis=-1), axis=-1), axis=-1)
    until_here = jnp.cumsum(behind, axis=-1) - behind
    passing = jnp.exp(sums[..., -1].sum(axis=-1, keepdims=True)) * both.sum(axis=-1, keepdims=True)
    return from_here + until_here + passing


def _march(
    chunks: int, members: int, q: Any, do: Any, sums: Any, last: Any, behind: Any, first: Any, narrow: Any, wide: Any
) -> None:
    """All chunks of 64 columns of a head, from the last to the first."""
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "columns"))
    group = lax.div(head, jnp.int32(members))
    columns = pl.ds(tile * blocks.COLUMNS, blocks.COLUMNS)
    key = q.shape[-1]
    parts = hopper.parts_of(key)

    def chunk(index: Any, q: Any, do: Any, sums: Any, slope: tuple[Array, ...]) -> tuple[Array, ...]:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        blocks.write_state(narrow, slope)
        row = pair(sums, hopper.PER_ROW)
        total = sums[0, blocks.CHUNK - 1] + sums[1, blocks.CHUNK - 1]
        wide[...] = (hopper.read(do) * blocks.per_row(jnp.exp(row[0] + row[1]))).astype(jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(narrow, behind.at[batch, head, chunks - 1 - index[0], :, columns])
        return tuple(
            hopper.add_product(fade(jnp.broadcast_to(total, x.shape), x), hopper.transposed(q.at[:, part]), wide)
            for part, x in zip(parts, slope, strict=True)
        )

    slope = plgpu.emit_pipeline(
        chunk,
        grid=(chunks,),
        in_specs=[
            blocks.block(key, lambda c: (batch, chunks - 1 - c, group, 0)),
            blocks.block(blocks.COLUMNS, lambda c: (batch, chunks - 1 - c, head, tile)),
            plgpu.BlockSpec((None, None, None, 2, blocks.CHUNK), lambda c: (batch, head, chunks - 1 - c, 0, 0)),
        ],
        max_concurrent_steps=blocks.STAGES,
        init_carry=blocks.state_of(last.at[batch, head, :, columns]),
    )(q, do, sums)
    blocks.write_state(first.at[batch, head, :, columns], slope)
    plgpu.wait_smem_to_gmem(0)


class Chunk(NamedTuple):
    """What of a chunk lies in shared memory: what is fetched, then what `_of_pairs` writes."""

    q: Any
    k: Any
    v: Any
    do: Any
    before: Any
    behind: Any
    scores: Any
    slopes: Any


def _gradients(each: int, members: int, q: Any, k: Any, v: Any, do: Any, sums: Any, *refs: Any) -> None:
    """Some chunks of a head, one after the other. States come by copies of their own, once they are no longer used."""
    before_far, behind_far, dq, dk, dv, marks_far, scores, slopes, out, marks, before, behind, arrived = refs
    batch, head, part = (lax.axis_index(name) for name in ("batch", "head", "part"))
    group = lax.div(head, jnp.int32(members))
    key, value = q.shape[-1], v.shape[-1]

    def fetch(at: Any) -> None:
        plgpu.copy_gmem_to_smem(before_far.at[batch, head, at], before, arrived)
        plgpu.copy_gmem_to_smem(behind_far.at[batch, head, at], behind, arrived)

    def chunk(index: Any, q: Any, k: Any, v: Any, do: Any, sums: Any) -> None:
        at = part * each + index[0]
        here = Chunk(q, k, v, do, before, behind, scores, slopes)
        mine = batch, pl.ds(at * blocks.CHUNK, blocks.CHUNK), head
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        row = pair(sums, hopper.PER_ROW)
        until_now, total = row[0] + row[1], sums[0, blocks.CHUNK - 1] + sums[1, blocks.CHUNK - 1]
        start, end = blocks.per_row(jnp.exp(until_now)), blocks.per_row(jnp.exp(jnp.minimum(total - until_now, 0.0)))
        _of_pairs(here, weights_of_chunk(row, sums), marks)
        plgpu.barrier_wait(arrived)
        found = *_of_keys(here, start, end, out, dq.at[mine], dk.at[mine]), _of_values(here, end, out, dv.at[mine])
        for i, x in enumerate(found):
            marks[2 + i] = x
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(marks, marks_far.at[batch, head, at])
        pl.when(index[0] < each - 1)(lambda: fetch(jnp.minimum(at + 1, before_far.shape[2] - 1)))

    fetch(jnp.minimum(part * each, before_far.shape[2] - 1))
    plgpu.emit_pipeline(
        chunk,
        grid=(each,),
        in_specs=[
            blocks.block(key, lambda c: (batch, part * each + c, group, 0)),
            blocks.block(key, lambda c: (batch, part * each + c, group, 0)),
            blocks.block(value, lambda c: (batch, part * each + c, head, 0)),
            blocks.block(value, lambda c: (batch, part * each + c, head, 0)),
            plgpu.BlockSpec((None, None, None, 2, blocks.CHUNK), lambda c: (batch, head, part * each + c, 0, 0)),
        ],
        max_concurrent_steps=blocks.STAGES,
    )(q, k, v, do, sums)
    plgpu.wait_smem_to_gmem(0)


def _of_pairs(here: Chunk, between: Array, marks: Any) -> None:
    """Write scores, their gradients before the decays, and what pairs of tokens leave."""
    scores = hopper.product(here.q, hopper.transposed(here.k)) * between
    here.scores[...] = scores.astype(jnp.bfloat16)
    slope = hopper.product(here.do, hopper.transposed(here.v))
    marks[0] = hopper.total(scores * slope, 1)
    marks[1] = hopper.total(scores * slope, 0)
    here.slopes[...] = (slope * between).astype(jnp.bfloat16)
    plgpu.commit_smem()


def _of_keys(here: Chunk, start: Array, end: Array, out: Any, dq: Any, dk: Any) -> tuple[Array, Array]:
    """Send gradients of queries and keys.

    Args:
        here: the chunk.
        start: decays since the start of the chunk.
        end: those until its end.
        out: shared memory for what is sent.
        dq: where it goes.
        dk: where it goes.

    Returns:
        What tokens leave with the state before the chunk, and with the one behind it.
    """
    with_before = with_behind = hopper.filled((blocks.CHUNK,), 0.0, hopper.PER_ROW)
    for columns in hopper.parts_of(here.q.shape[1]):
        far = hopper.product(here.do, hopper.transposed(here.before.at[columns, :])) * start
        with_before += hopper.total(far * hopper.read(here.q.at[:, columns]), 1)
        blocks.send(hopper.add_product(far, here.slopes, here.k.at[:, columns]), out, dq.at[:, columns])
        far = hopper.product(here.v, hopper.transposed(here.behind.at[columns, :])) * end
        with_behind += hopper.total(far * hopper.read(here.k.at[:, columns]), 1)
        slope = hopper.add_product(far, hopper.transposed(here.slopes), here.q.at[:, columns])
        blocks.send(slope, out, dk.at[:, columns])
    return with_before, with_behind


def _of_values(here: Chunk, end: Array, out: Any, dv: Any) -> Array:
    """Send gradients of values; what both states leave is returned."""
    both = hopper.filled((hopper.ROWS,), 0.0, hopper.PER_ROW)
    for columns in hopper.parts_of(here.v.shape[1]):
        far = hopper.product(here.k, here.behind.at[:, columns]) * end
        slope = hopper.add_product(far, hopper.transposed(here.scores), here.do.at[:, columns])
        blocks.send(slope, out, dv.at[:, columns])
        for rows in hopper.parts_of(here.k.shape[1]):
            x, y = (hopper.read(ref.at[rows, columns]) for ref in (here.before, here.behind))
            both += hopper.total(x * y, 1)
    return both
