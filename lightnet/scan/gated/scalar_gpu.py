"""Gated linear attention on Hopper GPUs, one decay per head, forward: chunks of 64 tokens in one kernel.

A program, one warpgroup, takes 64 columns of the values of one head through time and keeps its part of the state in
registers. Two chunks are in shared memory: while one is computed the other is fetched. Per chunk four products on the
tensor cores: what is added to the state, the scores, the queries with the state, the scores with the values. With one
decay per head the products of decays between two tokens are one small matrix, `weights`.

Per token and head of 128 channels 1,024 bytes must move, 0.34 ns at 3 TB/s; queries and keys are read once per 64
columns, at the same time and so mostly from the cache. Two programs fit a multiprocessor: 104 KiB of shared memory.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.scan.fade import fade
from lightnet.scan.gated import blocks_gpu as blocks
from lightnet.scan.gated.chunk import split_sums, weights
from lightnet.typing import Array


def forward(
    q: Array, k: Array, v: Array, log_decay: Array, initial_state: Array, *, store: bool = False
) -> list[Array]:
    """Outputs and last state, and the states before each chunk in half precision (B, H, chunks, K, V) to be stored.

    Keys, values and decays of masked tokens are 0, a reset is `LEAST` or less.
    """
    chunks, members = pl.cdiv(v.shape[1], blocks.CHUNK), v.shape[2] // k.shape[2]
    run = blocks.march(partial(_march, chunks, members), v, initial_state, store=store)
    return run(q, k, v, sums_of_chunks(log_decay, chunks), initial_state)


def sums_of_chunks(log_decay: Array, chunks: int) -> Array:
    """`split_sums` of each chunk, (B, H, chunks, 2, C): 8 bytes per token and head."""
    batch, length, heads, _ = log_decay.shape
    decay = jnp.pad(log_decay[..., 0].astype(jnp.float32), ((0, 0), (0, chunks * blocks.CHUNK - length), (0, 0)))
    return split_sums(decay.swapaxes(1, 2).reshape(batch, heads, chunks, blocks.CHUNK))


def _march(
    chunks: int, members: int, q: Any, k: Any, v: Any, sums: Any, initial: Any, o: Any, final: Any, *refs: Any
) -> None:
    """All chunks of 64 columns of a head."""
    *before, narrow, wide = refs  # the state in half precision; values, and outputs
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "columns"))
    group = lax.div(head, jnp.int32(members))
    columns = pl.ds(tile * blocks.COLUMNS, blocks.COLUMNS)
    key = q.shape[-1]
    parts = hopper.parts_of(key)

    def chunk(index: Any, q: Any, k: Any, v: Any, sums: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the outputs before have left
        blocks.write_state(narrow, state)
        row = pair(sums, hopper.PER_ROW)
        until_now, total = row[0] + row[1], sums[0, blocks.CHUNK - 1] + sums[1, blocks.CHUNK - 1]
        until_end = blocks.per_row(jnp.exp(jnp.minimum(total - until_now, 0.0)))
        wide[...] = (hopper.read(v) * until_end).astype(jnp.bfloat16)
        plgpu.commit_smem()
        for ref in before:
            plgpu.copy_smem_to_gmem(narrow, ref.at[batch, head, index[0], :, columns])
        state = tuple(
            hopper.add_product(fade(jnp.broadcast_to(total, x.shape), x), hopper.transposed(k.at[:, part]), wide)
            for part, x in zip(parts, state, strict=True)
        )
        scores = _scores(q, k, row, sums)
        past = hopper.product(q, narrow) * blocks.per_row(jnp.exp(until_now))
        wide[...] = hopper.add_product(past, scores, v).astype(jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(wide, o.at[batch, pl.ds(index[0] * blocks.CHUNK, blocks.CHUNK), head, columns])
        return state

    state = plgpu.emit_pipeline(
        chunk,
        grid=(chunks,),
        in_specs=[
            blocks.block(key, lambda c: (batch, c, group, 0)),
            blocks.block(key, lambda c: (batch, c, group, 0)),
            blocks.block(blocks.COLUMNS, lambda c: (batch, c, head, tile)),
            plgpu.BlockSpec((None, None, None, 2, blocks.CHUNK), lambda c: (batch, head, c, 0, 0)),
        ],
        max_concurrent_steps=blocks.STAGES,
        init_carry=blocks.state_of(initial.at[batch, head, :, columns]),
    )(q, k, v, sums)
    blocks.write_state(final.at[batch, head, :, columns], state)
    plgpu.wait_smem_to_gmem(0)


def _scores(q: Any, k: Any, row: tuple[Array, Array], sums: Any) -> Array:
    """<q_i, k_j> times the decays from j + 1 to i, for j <= i, in half precision."""
    products = hopper.product(q, hopper.transposed(k))
    return (products * weights_of_chunk(row, sums)).astype(jnp.bfloat16)


def weights_of_chunk(row: tuple[Array, Array], sums: Any) -> Array:
    """The decays from j + 1 to i, for j <= i, else 0."""
    column = pair(sums, hopper.PER_COLUMN)
    i, j = blocks.indices(blocks.CHUNK)
    return weights(
        (hopper.of_rows(row[0], blocks.CHUNK), hopper.of_rows(row[1], blocks.CHUNK)),
        (hopper.of_columns(column[0], blocks.CHUNK), hopper.of_columns(column[1], blocks.CHUNK)),
        i >= j,
    )


def pair(sums: Any, layout: Any) -> tuple[Array, Array]:
    """Both parts of the sums of log decays."""
    return hopper.load(sums.at[0], layout), hopper.load(sums.at[1], layout)
