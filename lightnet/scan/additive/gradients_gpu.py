"""The kernels of the backward pass of causal LightNet on Hopper, which `pallas_gpu_backward` explains and launches.

Per token and head of 128 channels queries, logits, values, the output's gradient and three gradients must move in
bfloat16, 1,792 bytes, 0.6 ns at 3 TB/s; with what the kernels hand to each other it is over three times that.

Rows of matrices are tokens, so that what each channel has is a vector along their columns; only the state has its key
channels as rows. Pairs of tokens lie with the earlier one as the row.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.scan.additive.blocks_gpu import (
    CHUNK,
    GROUP,
    LEAVES,
    PART,
    REAL,
    RUN,
    STAGES,
    STAYS,
    Plan,
    Sight,
    fill_square,
    flag_blocks,
    only,
)
from lightnet.typing import Array


def _block(size: int, mine: tuple, number: Any, part: Any = 0) -> plgpu.BlockSpec:
    """A chunk of a head of an array (B, L, H, sizes); number: step -> of the chunk."""
    batch, head = mine
    return plgpu.BlockSpec(
        (None, CHUNK, None, size), lambda t: (batch, number(t), head, part), transforms=hopper.swizzled(size)
    )


def _vectors(count: int, key: int, mine: tuple, number: Any) -> plgpu.BlockSpec:
    """Those of a chunk."""
    return plgpu.BlockSpec((None, None, None, count, key), lambda t: (*mine, number(t), 0, 0))


def _column(vectors: Any, row: int, group: Any) -> Array:
    """A vector of a group of channels, in all rows of a chunk."""
    return hopper.of_columns(hopper.load(vectors.at[row, group], hopper.PER_COLUMN), CHUNK)


def _send(x: Array, near: Any, far: Any) -> None:
    """To the memory of the device, by a copy from shared memory once all before has left."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    near[...] = x.astype(near.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(near, far)


def _logits(plan: Plan, t: Any, logits: Any) -> Array:
    """Of a group; zeros are read behind the end, where there is nothing."""
    a = hopper.read(logits)
    if plan.length % (plan.each * CHUNK) == 0:
        return a
    return jnp.where(hopper.index(a.shape, 0) + t * CHUNK < plan.length, a, -jnp.inf)


def within(*refs: Any, plan: Plan) -> None:
    """Some chunks of a head, one after the other. States come by copies of their own, once they are no longer used."""
    *given, ones, slopes, out, marks, sums, before, arrived = refs
    *inputs, dq_far, scaled_far, dk_far, dv_far, sums_far = given
    *codes, q, logits, v, do, vectors, before_far = inputs
    mine = lax.axis_index("batch"), lax.axis_index("head")
    first, last = lax.axis_index("stretch") * plan.each, before_far.shape[2] - 1
    number = lambda t: first + t  # noqa: E731
    if not codes:
        fill_square(ones)

    def fetch(at: Any) -> None:
        plgpu.copy_gmem_to_smem(before_far.at[(*mine, jnp.minimum(at, last))], before, arrived)

    def chunk(index: tuple, *refs: Any) -> None:
        *code, q, logits, v, do, vectors = refs
        at = number(index[0])
        tokens = mine[0], pl.ds(at * CHUNK, CHUNK), mine[1]
        sees, pairs = (Sight(code[0]), code[1]) if code else (None, ones)
        for group in plan.groups:
            keys = jnp.exp(_logits(plan, at, logits.at[:, group]) - _column(vectors, 0, group))
            logits[:, group] = keys.astype(plan.dtype)
        slopes[...] = _seen(pairs, hopper.product(v, hopper.transposed(do))).astype(plan.dtype)
        plgpu.commit_smem()
        plgpu.barrier_wait(arrived)
        for group in plan.groups:
            here = _Group(q.at[:, group], logits.at[:, group], before.at[group], vectors, group)
            far = dq_far.at[(*tokens, group)], dk_far.at[(*tokens, group)]
            sums[group] = _of_group(plan, sees, here, pairs, slopes, do, (out, marks), far)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(sums, sums_far.at[(*mine, at)])
        plgpu.copy_smem_to_gmem(q, scaled_far.at[tokens])
        pl.when(index[0] < plan.each - 1)(lambda: fetch(at + 1))
        scores = _seen(pairs, hopper.product(logits, hopper.transposed(q))).astype(plan.dtype)
        for columns in hopper.parts_of(plan.value):
            _send(hopper.product(scores, do.at[:, columns]), out, dv_far.at[(*tokens, columns)])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    fetch(first)
    plgpu.emit_pipeline(
        chunk,
        grid=(plan.each,),
        in_specs=[
            *flag_blocks(mine[0], number)[: len(codes)],
            *(_block(size, mine, number) for size in (plan.key, plan.key, plan.value, plan.value)),
            _vectors(2, plan.key, mine, number),
        ],
        max_concurrent_steps=STAGES,
    )(*codes, q, logits, v, do, vectors)
    plgpu.wait_smem_to_gmem(0)


def _seen(pairs: Any, x: Array) -> Array:
    """0 where the token of the row does not count for that of the column."""
    return jnp.where(hopper.load(pairs) != 0, x, 0.0)


class _Group(NamedTuple):
    """Queries and keys of a group of channels, the state before the chunk, and the vectors of all groups."""

    q: Any
    keys: Any
    before: Any
    vectors: Any
    group: Any


def _of_group(
    plan: Plan, sees: Sight | None, here: _Group, pairs: Any, slopes: Any, do: Any, near: tuple, far: tuple
) -> Array:
    """Send dq and what the chunk itself adds to the gradient of keys; scaled queries take the place of queries.

    Returns:
        Sums of dn over the tokens for which the state before counts.
    """
    out, marks = near
    normalisers = hopper.product(hopper.transposed(pairs), here.keys)
    normalisers += only(sees, _column(here.vectors, 1, here.group), RUN, 0)
    inverse = hopper.inverse(jnp.where(normalisers > 0, normalisers, 1.0))
    here.q[...] = (hopper.read(here.q) * inverse).astype(plan.dtype)
    dq = only(sees, hopper.product(do, hopper.transposed(here.before)), RUN, 0)
    dq = hopper.add_product(dq, hopper.transposed(slopes), here.keys) * inverse
    dn = -hopper.read(here.q) * dq  # read again: there are too few registers
    marks[...] = dn.astype(plan.dtype)
    _send(dq, out, far[0])
    sums = hopper.total(only(sees, dn, RUN, 0), 0)
    dk = hopper.product(pairs, marks)
    _send(hopper.add_product(dk, slopes, here.q), out, far[1])
    return sums


def march(*refs: Any, plan: Plan) -> None:
    """All chunks of some values of a head, from the last to the first."""
    *inputs, behind, total, first_state, first_total, narrow = refs
    *codes, scaled, do, vectors, last_total, last_state = inputs
    batch, head, part = (lax.axis_index(name) for name in ("batch", "head", "part"))
    channels = pl.ds(part * PART, PART)
    number = lambda t: plan.each - 1 - t  # noqa: E731

    def chunk(index: tuple, *refs: Any) -> tuple:
        *code, scaled, do, vectors, slopes = refs
        at, sees = number(index[0]), Sight(code[0]) if code else None
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for group, (of_total, of_state) in zip(plan.groups, slopes, strict=True):
            narrow[group] = of_state.astype(plan.dtype)
            total[batch, head, part, at, group] = of_total
        if sees:
            do[...] = only(sees, hopper.read(do), RUN, 0).astype(plan.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(narrow, behind.at[batch, head, at, :, channels])
        return tuple(
            _through(sees, scaled.at[:, group], do, vectors.at[:, group], *x)
            for group, x in zip(plan.groups, slopes, strict=True)
        )

    slopes = tuple(
        (
            hopper.fetch(last_total.at[batch, head, x], (GROUP,), hopper.PER_ROW),
            hopper.fetch(last_state.at[batch, head, x, channels], (GROUP, PART)),
        )
        for x in plan.groups
    )
    slopes = plgpu.emit_pipeline(
        chunk,
        grid=(plan.each,),
        in_specs=[
            *flag_blocks(batch, number)[: len(codes)],
            _block(plan.key, (batch, head), number),
            _block(PART, (batch, head), number, part),
            _vectors(2, plan.key, (batch, head), number),
        ],
        max_concurrent_steps=STAGES,
        init_carry=slopes,
    )(*codes, scaled, do, vectors)
    for group, (of_total, of_state) in zip(plan.groups, slopes, strict=True):
        first_total[batch, head, part, group] = of_total
        first_state[batch, head, group, channels] = of_state
    plgpu.wait_smem_to_gmem(0)


def _through(
    sees: Sight | None, scaled: Any, do: Any, vectors: Any, of_total: Array, of_state: Array
) -> tuple[Array, Array]:
    """Gradients of the sum and of the state of a group before a chunk, of those behind it."""
    if sees:
        of_total, of_state = (jnp.where(sees.of_chunk(x, STAYS) != 0, x, 0.0) for x in (of_total, of_state))
    gain, sums = (hopper.load(vectors.at[i], hopper.PER_ROW) for i in range(2))
    of_state = hopper.add_product(of_state, hopper.transposed(scaled), do)
    return gain * (of_total + sums), hopper.of_rows(gain, PART) * of_state


def beyond(*refs: Any, plan: Plan) -> None:
    """As `within`, with the gradient of the state behind each chunk."""
    *inputs, dlogits_far, dv_far, out, behind, arrived = refs
    *codes, logits, v, dk, dv, vectors, behind_far = inputs
    mine = lax.axis_index("batch"), lax.axis_index("head")
    first, last = lax.axis_index("stretch") * plan.each, behind_far.shape[2] - 1
    number = lambda t: first + t  # noqa: E731

    def fetch(at: Any) -> None:
        plgpu.copy_gmem_to_smem(behind_far.at[(*mine, jnp.minimum(at, last))], behind, arrived)

    def chunk(index: tuple, *refs: Any) -> None:
        *code, logits, v, dk, dv, vectors = refs
        at, sees = number(index[0]), Sight(code[0]) if code else None
        tokens = mine[0], pl.ds(at * CHUNK, CHUNK), mine[1]
        plgpu.barrier_wait(arrived)
        for group in plan.groups:
            a = _logits(plan, at, logits.at[:, group])
            keys = jnp.exp(a - _column(vectors, 0, group))
            attains = jnp.where(a == _column(vectors, 3, group), _column(vectors, 2, group), 0.0)
            logits[:, group] = keys.astype(plan.dtype)
            slope = hopper.product(v, hopper.transposed(behind.at[group])) + _column(vectors, 1, group)
            slope = keys * (only(sees, slope, LEAVES) + hopper.read(dk.at[:, group]))
            slope += only(sees, attains, LEAVES | REAL)
            _send(slope, out, dlogits_far.at[(*tokens, group)])
        plgpu.commit_smem()
        for columns in hopper.parts_of(plan.value):
            slope = only(sees, hopper.product(logits, behind.at[:, columns]), LEAVES)
            _send(slope + hopper.read(dv.at[:, columns]), out, dv_far.at[(*tokens, columns)])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        pl.when(index[0] < plan.each - 1)(lambda: fetch(at + 1))

    fetch(first)
    plgpu.emit_pipeline(
        chunk,
        grid=(plan.each,),
        in_specs=[
            *flag_blocks(mine[0], number)[: len(codes)],
            *(_block(size, mine, number) for size in (plan.key, plan.value, plan.key, plan.value)),
            _vectors(4, plan.key, mine, number),
        ],
        max_concurrent_steps=STAGES,
    )(*codes, logits, v, dk, dv, vectors)
    plgpu.wait_smem_to_gmem(0)
