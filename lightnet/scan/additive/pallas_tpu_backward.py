"""The backward pass of causal LightNet on TPUs.

It goes over the blocks of tokens from the last to the first, with the state before each from the forward pass: makes
the states of its chunks again, one product of matrices each, and differentiates each chunk in place, from the last to
the first. 7 arrays move, in bfloat16 1,792 bytes per token and head of 128 channels, 3.3 cycles on v5e, and 12 products
of matrices are made per chunk.

All maxima are held fixed. What reaches a logit of the last run through the maximum of the final state is added before
rounding, since it may cancel what reaches it through that state. It is the same at all tokens, and no part of what the
loop over chunks carries: libtpu 0.0.42 cannot allocate registers for that where several heads share rows of 128.
"""

from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lightnet.scan.additive.blocks_tpu import (
    ROWS,
    Blocks,
    Plan,
    Rows,
    gradients,
    load,
    of_factor,
    rows_of,
    run,
    sight,
    slopes_of,
    slots_of,
    state_of,
    steep,
    store,
)
from lightnet.scan.additive.chunk import AdditiveState
from lightnet.scan.additive.reference import Operands
from lightnet.scan.additive.tiles import Sight, State, behind, exactly, last_row, together
from lightnet.scan.additive.tiles import Tokens as Head
from lightnet.scan.additive.xla import as_it_was, second_order, share_of_maximum, unit
from lightnet.scan.kernels import flat
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

UNROLL = 2  # chunks whose waits fill each other
Bar = tuple[Array, Array]  # gradients of the total and the inner part of a state


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def gradient(
    operands: Operands,
    initial_state: AdditiveState,
    tokens: Tokens,
    before: list[Array],
    final: AdditiveState,
    cotangents: tuple[Array, AdditiveState],
    plan: Plan,
    interpret: bool,
) -> tuple[Operands, AdditiveState]:
    """Of all operands and the initial state.

    Args:
        operands: q, key logits, v, key factor.
        initial_state: of the forward pass.
        tokens: which begin a run, and which are real.
        before: the states before each block, three arrays (B, blocks, H, ...).
        final: state of the forward pass.
        cotangents: of outputs and final state.
        plan: sizes, with the blocks of the forward pass.
        interpret: run without a TPU.
    """
    batch, length = operands[2].shape[:2]
    do, final_bar = cotangents
    share, from_start = share_of_maximum(operands[1], initial_state, tokens, final, final_bar)
    blocks = Blocks(plan, backwards=True)
    runs, of_tokens = blocks.runs(tokens, batch, length), blocks.operands(operands)
    runs += [_tail(blocks, x) for x, _ in runs[1:]]
    _, *carried = rows_of(final_bar)
    of_state = [blocks.state(*x.shape[2:]) for x in carried]
    outputs = [(x, blocks.lanes(width)) for x, width in slopes_of(operands, plan)]
    parts, chunks = [x.shape[3:] for x in before], plan.tokens // plan.chunk
    found = run(
        partial(_kernel, plan=plan, flagged=len(runs), count=len(of_tokens)),
        plan,
        [
            *runs,
            *of_tokens,
            (flat(do), blocks.tokens(plan.value)),
            *((x[:, :, None], blocks.state(1, plan.key)) for x in (final.maximum, share)),
            *((x, blocks.states(*x.shape[3:])) for x in before),
            *zip(carried, of_state, strict=True),
        ],
        [*outputs, *((jax.ShapeDtypeStruct(x.shape, jnp.float32), y) for x, y in zip(carried, of_state, strict=True))],
        [
            *((*n, *part) for n in ((chunks, plan.heads), (plan.chunk // ROWS,)) for part in parts),
            *((2, plan.heads, *part) for part in parts[1:]),
        ],
        interpret=interpret,
    )
    initial_bar = state_of([jnp.where(from_start, share, 0)[:, :, None], *found[-2:]])
    through_unit = unit(initial_state, initial_bar.total, initial_bar.state)
    initial_bar = initial_bar._replace(maximum=initial_bar.maximum + through_unit)
    return gradients(found[:-2], operands), as_it_was(tokens, final, final_bar, initial_bar)


def _tail(blocks: Blocks, rows: Array) -> tuple[Array, pl.BlockSpec]:
    """Whether no run begins behind a chunk, (B, blocks, chunks, 1, 1), of what `Blocks.runs` has as rows."""
    begins = (rows[..., -1:] > 0).astype(jnp.int32)  # runs are counted from the beginning of their chunk
    every = begins.reshape(begins.shape[0], -1)
    behind = jnp.cumsum(every[:, ::-1], axis=1)[:, ::-1] - every
    tail = (behind == 0).astype(jnp.int32).reshape(begins.shape)
    return tail, pl.BlockSpec((None, None, *tail.shape[2:]), lambda b, h, t: (b, blocks.at(t), 0, 0, 0))


def _gradient_forward(*given: Any) -> Any:
    return gradient(*given), given[:6]


def _gradient_backward(plan: Plan, interpret: bool, residuals: Any, bars: Any) -> Any:
    """Derivatives of second order by XLA: `before` and `final` are functions of the others."""
    operands, initial_state, tokens, before, final, cotangents = residuals
    doperands, dstate, dcotangents = second_order(operands, initial_state, tokens, cotangents, bars)
    nothing = jax.tree.map(jnp.zeros_like, (before, final))
    return doperands, dstate, None, *nothing, dcotangents


gradient.defvjp(_gradient_forward, _gradient_backward)


class _Refs(NamedTuple):
    """Of the kernel: inputs, outputs and scratch memory.

    Attributes:
        runs: see `Blocks.runs` and `_tail`.
        operands: q, key logits, v, and factor if there is one.
        do: gradient of the outputs.
        maximum: of the final state.
        share: what reaches a logit that attains it.
        before: state before the block.
        final: gradient of the total and inner part of the final state.
        slopes: gradients of the operands.
        initial: the same of the initial state.
        states: before the chunks of the block.
        within: before every few tokens of one chunk.
        slots: gradients of the states behind the block, and behind its chunks.
        program: number of the program among those of the sequence.
    """

    runs: Any
    operands: Any
    do: Any
    maximum: Any
    share: Any
    before: Any
    final: Any
    slopes: Any
    initial: Any
    states: Any
    within: Any
    slots: Any
    program: Any


def _kernel(*refs: Any, plan: Plan, flagged: int, count: int) -> None:
    lengths = (flagged, count, 1, 1, 1, 3, 2, count, 2, 3, 3, 2)
    ends = list(accumulate(lengths))
    parts = [refs[end - n : end] for n, end in zip(lengths, ends, strict=True)]
    r = _Refs._make([*parts[:2], *(x for (x,) in parts[2:5]), *parts[5:], pl.program_id(1)])
    chunks, t = plan.tokens // plan.chunk, pl.program_id(2)
    old, new = slots_of(t)

    @pl.when(t == 0)
    def _() -> None:
        for x, y in zip(r.final, r.slots, strict=True):
            y[old] = x[...]

    for x, y in zip(r.before, r.states, strict=True):
        y[0] = x[...]

    def states(c: Any, _: None) -> None:
        rows, sees = _chunk(r, plan, c)
        for i in range(plan.heads):
            store(r.states, behind(rows.head(r.operands, i), load(r.states, c, i), sees, half=plan.half), c + 1, i)

    def quickly(j: Any, lost: Array) -> Array:
        slots = jnp.where(j == 0, old, new), new
        return jnp.maximum(lost, _together(r, plan, chunks - 1 - j, slots))

    def slowly(j: Any, _: None) -> None:
        for i in range(plan.heads):
            bar = _bar(r, jnp.where(j == 0, old, new), i)
            store(r.slots, _few_at_once(r, plan, bar, chunks - 1 - j, i), new, i)

    lax.fori_loop(0, chunks - 1, states, None)
    lost = lax.fori_loop(0, chunks, quickly, jnp.zeros((1, plan.key), jnp.float32), unroll=UNROLL if plan.half else 1)

    @pl.when(lost.max() > 0)
    def _() -> None:
        lax.fori_loop(0, chunks, slowly, None)

    @pl.when(t == plan.blocks - 1)
    def _() -> None:
        for x, y in zip(r.initial, r.slots, strict=True):
            x[...] = y[new]


def _bar(r: _Refs, slot: Any, i: int) -> Bar:
    total, inner = (x[slot, i] for x in r.slots)
    return total, inner


def _chunk(r: _Refs, plan: Plan, c: Any) -> tuple[Rows, Sight]:
    rows = Rows(r.runs, plan, pl.multiple_of(c * plan.chunk, plan.chunk), plan.chunk)
    return rows, sight(r.runs, plan, rows, c)


def _together(r: _Refs, plan: Plan, c: Any, slots: tuple[Any, Any]) -> Array:
    """Gradients of chunk c of all heads; (1, K), where they are lost to underflow."""
    rows, sees = _chunk(r, plan, c)
    lost = jnp.zeros((1, plan.key), jnp.float32)
    for i in range(plan.heads):
        head, state, bar = rows.head(r.operands, i), load(r.states, c, i), _bar(r, slots[0], i)

        def outputs(head: Head, total: Array, inner: Array, state: State = state) -> Any:
            o, after, normalisers = together(head, State(state.maximum, total, inner), sees, half=plan.half)
            return (o, after.total, after.inner), normalisers

        _, pull, normalisers = jax.vjp(outputs, head, state.total, state.inner, has_aux=True)
        head_bar, *state_bar = pull((rows.read(r.do, i), *bar))
        _write(r, plan, rows, i, head, head_bar, _last_run(r, c, sees.leaving))
        store(r.slots, tuple(state_bar), slots[1], i)
        lost = jnp.maximum(lost, steep(plan, rows, normalisers, r.program, i))
    return lost


def _few_at_once(r: _Refs, plan: Plan, bar: Bar, c: Any, i: int) -> Bar:
    """Chunk c of a head again, for any logits: the states before every few tokens first, then their gradients."""
    count, last = plan.chunk // ROWS, r.runs[1][c][:, -1:] if r.runs else None
    nowhere = jnp.zeros((1, 1), jnp.int32)

    def rows_at(j: Any) -> Rows:
        return Rows(r.runs, plan, pl.multiple_of(c * plan.chunk + j * ROWS, ROWS), ROWS)

    def forward(j: Any, carry: tuple[State, Array]) -> tuple[State, Array]:
        rows = rows_at(j)
        store(r.within, carry[0], j)
        return exactly(rows.head(r.operands, i), carry[0], rows.run, carry[1])[1:]

    def backward(k: Any, bar: Bar) -> Bar:
        j = count - 1 - k
        rows, state, before = rows_at(j), load(r.within, j), nowhere
        if last is not None:
            before = jnp.where(j > 0, last_row(rows_at(jnp.maximum(j - 1, 0)).run), nowhere)

        def outputs(head: Head, total: Array, inner: Array) -> Any:
            o, after, _ = exactly(head, State(state.maximum, total, inner), rows.run, before)
            return o, after.total, after.inner

        head = rows.head(r.operands, i)
        _, pull = jax.vjp(outputs, head, state.total, state.inner)
        head_bar, total_bar, inner_bar = pull((rows.read(r.do, i), *bar))
        _write(r, plan, rows, i, head, head_bar, _last_run(r, c, None if last is None else rows.run == last))
        return total_bar, inner_bar

    lax.fori_loop(0, count, forward, (load(r.states, c, i), nowhere))
    return lax.fori_loop(0, count, backward, bar)


def _last_run(r: _Refs, c: Any, leaving: Array | None) -> Array | None:
    """(C, 1), true at the tokens of chunk c that count for the final state; None if all do."""
    return None if leaving is None else leaving & (r.runs[2][c] != 0)


def _write(r: _Refs, plan: Plan, rows: Rows, i: int, head: Head, head_bar: Head, last: Array | None) -> None:
    """Gradients of the tokens of a head, 0 at masked ones, with what reaches the logits through the final maximum."""
    share = jnp.where(head.logits == r.maximum[i], r.share[i], 0.0)
    share = share if last is None else jnp.where(last, share, 0.0)
    for ref, x in zip(r.slopes, (head_bar.q, head_bar.logits + share, head_bar.v), strict=False):
        rows.write(ref, i, rows.real(x, 0.0))
    if head_bar.factor is not None:
        found = rows.real(head_bar.factor, 0.0)
        rows.write(r.slopes[3], *of_factor(r.slopes[3], plan, r.program, i, found, rows.rows))
