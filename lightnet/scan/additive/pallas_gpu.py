"""Causal LightNet on Hopper, forward: chunks of 64 tokens as plain linear attention, without any gates.

A program takes one head and 64 of its value channels and marches over the sequence, its part of the state in registers.
Logits and queries enter registers turned, a channel a row: so maxima, decays and normalisers are vectors along the rows
of the state, and the sums of keys up to each token are one more product, with a triangle of ones. Relative to the
largest logit of the chunk and the state, keys, and queries over their normalisers, return to shared memory, where the
tensor cores take them. The programs of a head share queries and logits in the second-level cache: per token and head of
128 channels 1,024 bytes must move, 0.34 ns of an H100's memory, against 131,072 operations, 0.16 ns. Where that gives
few programs and all tokens are of one run, the kernel of keys without an order first makes the states behind stretches
of the sequence, over which the programs then march at once: half as many bytes again.

Where a chunk rises so steeply that keys beside the largest one are lost to underflow, as `comfortable` says, XLA's form
runs instead, for the whole call. Under differentiation the state before each chunk is stored in half precision; the
backward pass is in `pallas_gpu_backward`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.scan.additive import launch_gpu
from lightnet.scan.additive.blocks_gpu import (
    CHUNK,
    ENTERS,
    GROUP,
    LEAVES,
    PART,
    REAL,
    RUN,
    STAGES,
    START,
    START_UNIT,
    STAYS,
    Before,
    Plan,
    Sight,
    causal_pairs,
    fill_square,
    flag_blocks,
    flags,
    masked,
    only,
    padded,
    square,
    where_steep,
)
from lightnet.scan.additive.chunk import AdditiveState, finite, merge
from lightnet.scan.additive.order_free_gpu import gathered
from lightnet.scan.additive.pallas_gpu_backward import gradient
from lightnet.scan.additive.reference import Operands
from lightnet.scan.additive.xla import additive_xla
from lightnet.scan.kernels import flat
from lightnet.scan.recurrence import Tokens, mapped_alike
from lightnet.typing import Array

LONG = 8  # chunks that a stretch has at least
LEAST = float(jnp.finfo(jnp.float32).tiny) ** 0.7  # below this, keys beside the largest one may be lost
FAR = 1 - math.log(LEAST)  # keys that are further below the reference are below it


def additive_gpu(operands: Operands, initial_state: AdditiveState, tokens: Tokens) -> tuple[Array, AdditiveState]:
    """See `additive_reference`, without key factors."""
    return _scan(operands, initial_state, tokens, False)[:2]


def refusal(operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    q, logits, v, factor = operands
    return "the kernel is without key factors" if factor is not None else launch_gpu.refusal(q, logits, v)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(operands: Operands, initial_state: AdditiveState, tokens: Tokens, stores: bool) -> Any:
    """Outputs, the last state, and for the backward pass what is stored and whether XLA's form had to run."""
    return _outputs(operands, initial_state, tokens, stores)


def _scan_forward(operands: Operands, initial_state: AdditiveState, tokens: Tokens, stores: bool) -> Any:
    o, final, kept = _scan(operands, initial_state, tokens, True)
    before, steep = kept
    return (o, final, kept if stores else None), (operands, initial_state, tokens, before, final, steep)


def _scan_backward(stores: bool, residuals: Any, cotangents: Any) -> Any:
    return *gradient(*residuals, cotangents[:2]), None


_scan.defvjp(_scan_forward, _scan_backward)


def _outputs(operands: Operands, initial_state: AdditiveState, tokens: Tokens, stores: bool) -> Any:
    o, behind, least, before = _march(operands, initial_state, tokens, stores)
    steep = (least < LEAST).any()  # not where it is not a number, so that the outputs are not either
    given = tuple(map(flat, operands[:3]))

    def exactly(flat_operands: Any, initial_state: AdditiveState, tokens: Tokens) -> Any:
        q, logits, v = (x.reshape(*o.shape[:3], -1) for x in flat_operands)
        again, behind = additive_xla((q, logits, v, None), initial_state, tokens)
        return flat(again), behind

    o_flat, behind = where_steep(steep, (flat(o), behind), exactly, (given, initial_state, tokens))
    kept = (before, steep) if stores else None
    return *mapped_alike((o_flat.reshape(o.shape), behind), (operands, initial_state)), kept


def _march(operands: Operands, initial_state: AdditiveState, tokens: Tokens, stores: bool) -> Any:
    """Outputs, the last state, the least normaliser of each group of channels, and what is stored, if anything."""
    q, logits, v, _ = operands
    (batch, length, heads, value), key = v.shape, logits.shape[3]
    q, logits, v = padded(q), masked(logits, tokens), padded(v)
    parts, chunks = value // PART, pl.cdiv(length, CHUNK)
    each = chunks if tokens.keep is not None else _each(batch * heads * parts, chunks)
    entering = _entering(logits, v, initial_state, each)
    stretches = entering.total.shape[2]
    grid = {"batch": batch, "head": heads, "stretch": stretches, "part": parts}
    sizes = [(parts, key), (parts, key), (key, value), (stretches, parts, GROUP)]
    sizes += [(parts, stretches * each, key)] * 3 * stores
    outputs = [launch_gpu.shape(*v.shape, dtype=v.dtype), *(launch_gpu.shape(batch, heads, *x) for x in sizes)]
    outputs += [launch_gpu.shape(batch, heads, stretches * each, key, value, dtype=v.dtype)] * stores
    flagged = flags(tokens, batch, length, each * CHUNK, v.dtype)
    # Of pairs of tokens that all chunks share, and of the state as it enters a chunk and the next one.
    scratch = square(flagged, v.dtype), hopper.tile(2, key, PART, dtype=v.dtype)
    plan = Plan(v.shape[1], each, key, value, v.dtype, stores)
    run = launch_gpu.kernel(_causal, outputs, grid, scratch, plan=plan)
    o, maximum, total, state, least, *before = run(*flagged, q, logits, v, *entering)
    stored = Before._make([*(x[:, :, 0] for x in before[:3]), before[3]]) if stores else None
    return o[:, :length], AdditiveState(maximum[:, :, 0], total[:, :, 0], state), least, stored


def _each(programs: int, chunks: int) -> int:
    """How many chunks a stretch has: all, or fewer where cores would have nothing to do, but not too few.

    Example:
        >>> _each(64, 64), _each(32, 64), _each(8, 40)
        (32, 16, 8)
    """
    return pl.cdiv(chunks, max(1, min(hopper.PROCESSORS // programs, chunks // LONG)))


def _entering(logits: Array, v: Array, initial_state: AdditiveState, each: int) -> AdditiveState:
    """The states (B, H, stretches, ...) that enter; keys and values are read once more if stretches are several."""
    states = [initial_state]
    if each * CHUNK < logits.shape[1]:
        parts = gathered(logits, v, each * CHUNK)
        for i in range(parts.total.shape[2] - 1):
            states.append(merge(states[-1], AdditiveState(*(x[:, :, i] for x in parts))))
    return AdditiveState(*(jnp.stack(x, axis=2) for x in zip(*states, strict=True)))


def _causal(*refs: Any, plan: Plan) -> None:
    *given, ones, held = refs
    far = given[-4:] if plan.stores else []
    *inputs, o, last_maximum, last_total, last_inner, least = given[: len(given) - len(far)]
    *codes, q, logits, v, maximum, total, inner = inputs
    mine = batch, head, stretch, part = tuple(lax.axis_index(x) for x in ("batch", "head", "stretch", "part"))
    first = stretch * plan.each
    channels = pl.ds(part * PART, PART)
    if not codes:
        fill_square(ones)

    def block(size: int, at: Any) -> plgpu.BlockSpec:
        shape = (None, CHUNK, None, size)
        return plgpu.BlockSpec(shape, lambda t: (batch, first + t, head, at), transforms=hopper.swizzled(size))

    def store(t: Any, held: Any, entered: list) -> None:
        plgpu.copy_smem_to_gmem(held, far[3].at[batch, head, t, :, channels])
        for group, x in zip(plan.groups, entered, strict=True):
            for ref, y in zip(far[:3], x, strict=True):
                ref[batch, head, part, t, group] = y

    def step(at: tuple, *refs: Any) -> Any:
        *code, q, logits, v, o, (states, least) = refs
        here = Chunk(first + at[0], code, q, logits, v, o, ones, held.at[lax.rem(at[0], 2)])
        if plan.stores:
            plgpu.wait_smem_to_gmem(2, wait_read_only=True)  # the state two chunks ago has left, in whose place this is
        return _chunk(plan, here, states, least, partial(store, here.number) if plan.stores else None)

    entering = [x.at[mine[:3]] for x in (maximum, total, inner)]
    states = tuple(_fetched(entering, group, channels) for group in plan.groups)
    run = plgpu.emit_pipeline(
        step,
        grid=(plan.each,),
        in_specs=[
            *flag_blocks(batch, lambda t: first + t)[: len(codes)],
            *(block(plan.key, 0), block(plan.key, 0), block(PART, part)),
        ],
        out_specs=[block(PART, part)],
        max_concurrent_steps=STAGES,
        init_carry=(states, hopper.filled((GROUP,), jnp.inf, hopper.PER_ROW)),
    )
    states, least[mine] = run(*codes, q, logits, v, o)

    @pl.when((first + plan.each) * CHUNK >= plan.length)
    def _() -> None:
        for group, state in zip(plan.groups, states, strict=True):
            last_maximum[batch, head, part, group], last_total[batch, head, part, group] = state.maximum, state.total
            last_inner[batch, head, group, channels] = state.state


def _fetched(entering: list, group: Any, channels: Any) -> AdditiveState:
    """The state of a group of keys before a stretch."""
    maximum, total, inner = entering
    largest, sums = (hopper.fetch(x.at[group], (GROUP,), hopper.PER_ROW) for x in (maximum, total))
    return AdditiveState(largest, sums, hopper.fetch(inner.at[group, channels], (GROUP, PART), hopper.MATRIX))


class Chunk(NamedTuple):
    """Its number, what of it lies in shared memory, and room there for pairs of tokens and for the state."""

    number: Any
    code: list
    q: Any
    logits: Any
    v: Any
    o: Any
    ones: Any
    held: Any


def _chunk(
    plan: Plan, here: Chunk, states: tuple[AdditiveState, ...], least: Array, store: Callable | None
) -> tuple[tuple[AdditiveState, ...], Array]:
    """Outputs, the states that leave and the least normaliser; keys and scaled queries take the place of operands."""
    sees = Sight(here.code[0]) if here.code else None
    ones = here.code[1] if here.code else here.ones
    q, logits, v = here.q, here.logits, here.v
    entered = [
        _keys(plan, here.number, sees, logits.at[:, group], here.held.at[group], s)
        for group, s in zip(plan.groups, states, strict=True)
    ]
    plgpu.commit_smem()
    if store:
        store(here.held, [(s.maximum, s.total, x[2]) for s, x in zip(states, entered, strict=True)])
    for group, (_, before, _) in zip(plan.groups, entered, strict=True):
        least = jnp.minimum(least, _scale(sees, before, q.at[:, group], logits.at[:, group], ones))
    plgpu.commit_smem()
    scores = hopper.product(q, hopper.transposed(logits))
    scores = causal_pairs(here.number, scores, lambda row, column: row >= column)
    if sees is not None:
        start = sees.of_row(scores, START) // START_UNIT
        scores = causal_pairs(here.number, scores, lambda _, column: column >= start + here.number)
    scores = scores.astype(plan.dtype)
    past = only(sees, hopper.product(q, here.held), RUN, 0)
    here.o[...] = hopper.add_product(past, scores, v).astype(here.o.dtype)
    return tuple(
        _leave(plan, sees, logits.at[:, group], v, *x) for group, x in zip(plan.groups, entered, strict=True)
    ), least


def _keys(plan: Plan, t: Any, sees: Sight | None, logits: Any, held: Any, state: AdditiveState) -> tuple:
    """Keys of a group in the place of logits; the state relative to their reference, as it enters and as it leaves."""
    a = hopper.read_transposed(logits)
    if plan.length % (plan.each * CHUNK):  # zeros are read behind the end
        token = hopper.index(a.shape, 1) + t * CHUNK
        a = jnp.where(token < plan.length, a, -jnp.inf)
    entering, largest = state.maximum, a.max(axis=1)
    last = largest
    if sees is not None:
        entering = jnp.where(sees.of_chunk(entering, ENTERS) != 0, entering, -jnp.inf)
        last = jnp.where(sees.of_column(a, LEAVES) != 0, a, -jnp.inf).max(axis=1)
    reference = finite(jnp.maximum(entering, largest))
    keys, decay = jnp.exp(a - hopper.of_rows(reference, CHUNK)), jnp.exp(entering - reference)
    leaving = keys if sees is None else jnp.where(sees.of_column(a, LEAVES) != 0, keys, 0.0)
    added = leaving.sum(axis=1)
    hopper.write_transposed(logits, keys)
    before, inner = decay * state.total, hopper.of_rows(decay, PART) * state.state
    held[...] = inner.astype(plan.dtype)
    maximum, total = (_if_stays(sees, x, empty) for x, empty in ((entering, -jnp.inf), (before, 0.0)))
    return AdditiveState(jnp.maximum(maximum, last), total + added, inner), before, reference


def _if_stays(sees: Sight | None, x: Array, empty: float) -> Array:
    """What enters a chunk, as it leaves."""
    return x if sees is None else jnp.where(sees.of_chunk(x, STAYS) != 0, x, empty)


def _scale(sees: Sight | None, before: Array, q: Any, keys: Any, ones: Any) -> Array:
    """Queries of a group over their normalisers, the least of which is returned, in the place of queries."""
    sums = hopper.product(hopper.transposed(keys), ones)
    past = hopper.of_rows(before, CHUNK)
    if sees is None:
        of_real = sums = sums + past
    else:
        code = sees.of_column(sums, RUN | REAL)
        sums = sums + jnp.where(code & RUN == 0, past, 0.0)
        of_real = jnp.where(code & REAL != 0, sums, jnp.inf)
    least = of_real.min(axis=1)
    hopper.write_transposed(q, hopper.read_transposed(q) * hopper.inverse(jnp.where(sums > 0, sums, 1.0)))
    return least


def _leave(
    plan: Plan, sees: Sight | None, keys: Any, v: Any, state: AdditiveState, before: Array, reference: Array
) -> AdditiveState:
    """The state of a group that leaves: with the keys that count for it."""
    if sees is None:
        return state._replace(state=hopper.add_product(state.state, hopper.transposed(keys), v))
    x = hopper.load(keys)
    keys[...] = jnp.where(sees.of_row(x, LEAVES) != 0, x, jnp.zeros_like(x))
    plgpu.commit_smem()
    # Beyond `FAR` keys are lost, and nothing times infinity would be no number.
    rescale = jnp.exp(jnp.minimum(reference - finite(state.maximum), FAR))
    inner = hopper.add_product(_if_stays(sees, state.state, 0.0), hopper.transposed(keys), v)
    return AdditiveState(state.maximum, rescale * state.total, hopper.of_rows(rescale, PART) * inner)
