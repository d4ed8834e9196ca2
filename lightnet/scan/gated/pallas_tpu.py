"""Gated linear attention on TPUs: chunks of 128 tokens, states stay in VMEM.

A program takes a few heads of one sequence through time, chunk after chunk; heads side by side fill each other's waits.
Heads lie side by side in the last axis, (B, L, H K), as the projections before and behind give and take them.

One decay per key channel, by the tree of products (`lightnet.scan.gated.tiles`): per token and head of 128 channels in
bfloat16 with float32 decays 1,536 bytes must move, 2.8 cycles on v5e; the forward pass takes at most 4 bundles, most of
them products of decays.

One decay per head, or none, by products of matrices alone (`lightnet.scan.gated.matrices`): 1,028 bytes, 1.9 cycles on
v5e, and 2.1 bundles. XLA's form, in whichever chunks, takes six times that at least: it writes scores and states and
reads them again, and copies the operands into other layouts.

The forward pass stores the state before each block of `TOKENS`. The backward pass goes over these from the last to the
first, makes the states of its chunks again, and differentiates each chunk in place: decays of 0 need no care, since
no gradient is divided by a decay.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.gated import matrices, tiles
from lightnet.scan.gated.blocks import MOST, Chunk, Named, Plan, as_rows, call, room
from lightnet.scan.gated.xla import gated_xla
from lightnet.scan.kernels import LANES, differentiable, flags_of, flat, heads_of_program, traced_once, wrong_precision
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

CHUNK, TOKENS = 128, 512  # tokens of a chunk, and of a block that is in VMEM at once in half precision
HEADS, HEADS_BACKWARD = 4, 2  # side by side in a program, if sizes allow

Operands = tuple[Array, Array, Array, Array]


def gated_tpu(
    operands: Operands, initial_state: Array, tokens: Tokens, *, interpret: bool = False
) -> tuple[Array, Array]:
    """See `gated_reference`."""
    key, value = initial_state.shape[2:]
    if _heads(operands, HEADS) is None:
        operands, initial_state = _filled(operands, initial_state)
    o, final = _scan(operands, initial_state, tokens, interpret)
    return o[..., :value], final[..., :key, :value]


def refusal(operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    if wrong := wrong_precision(operands):
        return wrong
    sizes = [operands[i].shape[-1] for i in (0, 2)]
    if _heads(operands, HEADS) is None:
        operands = jax.eval_shape(lambda *x: _filled(x, jnp.zeros((1, 1, *sizes)))[0], *operands)
    if not _tokens(operands):
        return f"the state of a head of sizes {sizes[0]} and {sizes[1]} leaves no room in fast memory"
    return None


def _filled(operands: Operands, initial_state: Array) -> tuple[Operands, Array]:
    """Heads of sizes that fill rows of the vector unit, with zeros behind what is given."""

    def fill(x: Array, *axes: int) -> Array:
        return jnp.pad(x, [(0, -size % LANES if axis - x.ndim in axes else 0) for axis, size in enumerate(x.shape)])

    q, k, v, log_decay = operands
    log_decay = log_decay if log_decay.shape[-1] == 1 else fill(log_decay, -1)
    return (fill(q, -1), fill(k, -1), fill(v, -1), log_decay), fill(initial_state, -2, -1)


def _heads(operands: Any, wanted: int) -> int | None:
    """How many a program takes: fewer of larger ones."""
    (groups, key), (heads, value) = operands[0].shape[2:], operands[2].shape[2:]
    if min(key, value) == 1:  # there are no half-precision columns of a single number
        return None
    some = max(wanted * LANES // max(key, value, LANES), 1)
    return heads_of_program(heads, groups, key, value, some, joint=operands[3].shape[-1] == 1)


def _wanted(operands: Any, *, backward: bool) -> int:
    return HEADS_BACKWARD if backward and (operands[3].shape[-1] > 1 or not _half(operands)) else HEADS


def _tokens(operands: Any) -> int:
    """Of a block: what the backward pass has room for, the forward pass has too. 0 if there is none."""
    q, _, v, log_decay = operands
    heads, scalar = _heads(operands, _wanted(operands, backward=True)), log_decay.shape[-1] == 1
    assert heads is not None
    tokens, chunk = TOKENS if _half(operands) else TOKENS // 2, _chunk(operands)
    while tokens >= chunk and room(tokens, heads, q.shape[3], v.shape[3], chunk, _half(operands), scalar) > MOST:
        tokens //= 2
    return min(tokens // chunk, pl.cdiv(q.shape[1], chunk)) * chunk


def _chunk(operands: Any) -> int:
    return min(CHUNK, max(16, 1 << (operands[0].shape[1] - 1).bit_length()))


def _half(operands: Any) -> bool:
    return all(x.dtype == jnp.bfloat16 for x in operands[:3])


def _plan(operands: Operands, *, backward: bool) -> Plan:
    q, _, v, log_decay = operands
    found, tokens = _heads(operands, _wanted(operands, backward=backward)), _tokens(operands)
    assert found is not None
    members = v.shape[2] // q.shape[2]
    return Plan(
        heads=found,
        groups=max(found // members, 1),
        members=members,
        key=q.shape[3],
        value=v.shape[3],
        chunk=_chunk(operands),
        tokens=tokens,
        blocks=pl.cdiv(q.shape[1], tokens),
        half=_half(operands),
        scalar=log_decay.shape[-1] == 1,
    )


def _forward(
    operands: Operands, initial_state: Array, tokens: Tokens, store: bool, interpret: bool
) -> tuple[Array, Array, list[Array]]:
    """Outputs, last state, and the states before each block of tokens if they are stored."""
    plan = _plan(operands, backward=False)
    batch, length, heads, value = operands[2].shape
    inputs = [*_given(operands, tokens, plan)[0], ("state", _turned(initial_state, plan))]
    outputs = [
        ("value", jax.ShapeDtypeStruct((batch, length, heads * value), jnp.result_type(*operands[:3]))),
        ("state", jax.ShapeDtypeStruct((batch, heads, *plan.state), jnp.float32)),
        *[("states", jax.ShapeDtypeStruct((batch, plan.blocks, heads, *plan.state), jnp.float32))] * store,
    ]
    scratch = [pltpu.VMEM((plan.heads, *plan.state), jnp.float32)]
    o, final, *before = call(_forward_kernel, plan, inputs, outputs, scratch, backwards=False, interpret=interpret)
    return o.reshape(operands[2].shape), _turned(final, plan), before


def _backward(
    operands: Operands, cotangents: tuple[Array, Array], tokens: Tokens, before: Array, interpret: bool
) -> tuple[Operands, Array]:
    """Gradients of the operands and of the initial state."""
    plan = _plan(operands, backward=True)
    q, k, v, _ = operands
    (batch, length, groups, _), programs = q.shape, v.shape[2] // plan.heads
    do, dfinal = cotangents
    given, to_decay = _given(operands, tokens, plan)
    inputs = [*given, ("value", flat(do)), ("states", before), ("state", _turned(dfinal, plan))]
    # Those of a query and a key that several programs share, or several heads that are not made together, are summed.
    parts = programs * plan.slopes // groups
    slope = (batch, length, programs * plan.slopes * plan.key)
    outputs = [
        *[("slope", jax.ShapeDtypeStruct(slope, x.dtype if parts == 1 else jnp.float32)) for x in (q, k)],
        *[(name, jax.ShapeDtypeStruct(x.shape, x.dtype)) for name, x in given[-2:]],
    ]
    state = (plan.heads, *plan.state)
    dq, dk, dv, dlog, dstate = call(
        _backward_kernel,
        plan,
        inputs,
        [*outputs, ("state", jax.ShapeDtypeStruct(inputs[-1][1].shape, jnp.float32))],
        [pltpu.VMEM((plan.tokens // plan.chunk, *state), jnp.float32), pltpu.VMEM(state, jnp.float32)],
        backwards=True,
        interpret=interpret,
    )
    if parts > 1:
        dq, dk = (x.reshape(*q.shape[:3], parts, -1).sum(axis=3).astype(y.dtype) for x, y in ((dq, q), (dk, k)))
    return (dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape), to_decay(dlog)[0]), _turned(dstate, plan)


def _xla(operands: Operands, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """XLA's form with outputs in the precision of the kernel's."""
    o, final = gated_xla(operands, initial_state, tokens)
    return o.astype(jnp.result_type(*operands[:3])), final


_scan = differentiable(_forward, _backward, _xla)


def _given(operands: Operands, tokens: Tokens, plan: Plan) -> tuple[Named, Any]:
    """The arrays of the kernel; and from the gradient of its decays to that of the decays."""
    *others, log_decay = operands
    decays, to_decay = jax.vjp((lambda x: as_rows(x, tokens, plan)) if plan.scalar else flat, log_decay)
    batch, length = operands[0].shape[:2]
    flags = flags_of(tokens, batch, length, plan.blocks * plan.tokens)
    # A column for each sequence, (B, L', 1).
    named: Named = [] if flags is None else [("flags", flags[..., None])]
    named += [(name, flat(x)) for name, x in zip(("group", "group", "value"), others, strict=True)]
    return [*named, ("rows" if plan.scalar else "key", decays)], to_decay


def _turned(state: Array, plan: Plan) -> Array:
    """From (B, H, K, V) to states as the kernel has them, and back."""
    return state if plan.scalar else state.swapaxes(2, 3)


def _forward_kernel(*refs: Any, plan: Plan, flagged: bool) -> None:
    *flags, q, k, v, log_decay, initial, o, final = refs[: flagged + 7]
    *before, state = refs[flagged + 7 :]

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        state[...] = initial[...]

    for ref in before:
        ref[...] = state[...]

    def chunk(c: Any, _: None) -> None:
        read = Chunk(flags, plan, c)
        for heads in _together(plan):
            given = _operands(read, [q], k, v, log_decay, heads, narrow=plan.half)
            outs, after = _form(plan).output_and_state(*given, [state[i] for i in heads], half=plan.half)
            for i, out, x in zip(heads, outs, after, strict=True):
                read.write(o, i, out)
                state[i] = x

    lax.fori_loop(0, plan.tokens // plan.chunk, chunk, None)

    @pl.when(pl.program_id(2) == plan.blocks - 1)
    def _() -> None:
        final[...] = state[...]


def _backward_kernel(*refs: Any, plan: Plan, flagged: bool) -> None:
    *flags, q, k, v, log_decay, do, before, dfinal = refs[: flagged + 7]
    dq, dk, dv, dlog, dinitial, states, dstate = refs[flagged + 7 :]
    count = plan.tokens // plan.chunk

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        dstate[...] = dfinal[...]

    def again(c: Any, _: None) -> None:
        read = Chunk(flags, plan, c)
        for heads in _together(plan):
            given = _operands(read, [], k, v, log_decay, heads, narrow=plan.half)
            after = _form(plan).state_behind(*given, [states[c, i] for i in heads], half=plan.half)
            for i, x in zip(heads, after, strict=True):
                states[c + 1, i] = x

    def chunk(j: Any, _: None) -> None:
        c = count - 1 - j
        read = Chunk(flags, plan, c)
        for heads in _together(plan):
            given = [*_operands(read, [q], k, v, log_decay, heads), [states[c, i] for i in heads]]
            bars = [read(do, i, plan.value) for i in heads], [dstate[i] for i in heads]
            slopes = _slopes(given, bars, plan.scalar, plan.half)
            _write(read, (dq, dk, dv, dlog, dstate), slopes, heads)

    states[0] = before[...]
    lax.fori_loop(0, count - 1, again, None)
    lax.fori_loop(0, count, chunk, None)

    @pl.when(pl.program_id(2) == plan.blocks - 1)
    def _() -> None:
        dinitial[...] = dstate[...]


@partial(traced_once, static=(2, 3))
def _slopes(given: list, bars: Any, scalar: bool, half: bool) -> Any:
    """The gradients of a chunk of some heads, from its operands and its states to those of its outputs and states."""
    return jax.vjp(partial((matrices if scalar else tiles).output_and_state, half=half), *given)[1](bars)


def _form(plan: Plan) -> Any:
    """The mathematics of a chunk."""
    return matrices if plan.scalar else tiles


def _together(plan: Plan) -> list[range]:
    """Heads of a program that are made together, if registers hold what is halfway made of them."""
    some = plan.heads if plan.scalar else 2 if plan.half else 1
    return [range(i, min(i + some, plan.heads)) for i in range(0, plan.heads, some)]


def _operands(read: Chunk, q: list, k: Any, v: Any, log_decay: Any, heads: range, *, narrow: bool = False) -> list:
    """Of one chunk of these heads, as the form takes them; without queries if there are none."""
    plan = read.plan
    if plan.scalar:
        values = [read(v, i, plan.value, narrow=narrow) for i in heads]
        decays: list = [log_decay[read.index, i : i + 1] for i in heads]
        shared: list = [[read(x, i, plan.key, narrow=narrow) for i in range(plan.groups)] for x in (*q, k)]
    else:
        values = [read(v, i, plan.value) for i in heads]
        decays = [tiles.tiles_of(read.decay(log_decay, i)) for i in heads]
        shared = [[tiles.tiles_of(read(x, read.group(i), plan.key)) for i in heads] for x in (*q, k)]
    return [*shared, values, decays]


def _write(read: Chunk, refs: tuple, slopes: Any, heads: range) -> None:
    """The gradients of `_operands` and of the states."""
    dq, dk, dv, dlog, dstate = refs
    scalar = read.plan.scalar
    for ref, some in zip((dq, dk), slopes, strict=False):
        for i, slope in zip(range(read.plan.groups) if scalar else heads, some, strict=True):
            read.write(ref, i, slope if scalar else jnp.concatenate(slope, axis=0))
    for i, value, decay, state in zip(heads, *slopes[2:], strict=True):
        read.write(dv, i, value)
        dstate[i] = state
        if scalar:
            dlog[read.index, i : i + 1] = decay
        else:
            read.write(dlog, i, jnp.concatenate(decay, axis=0))
