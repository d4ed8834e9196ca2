"""Gated linear attention on TPUs, one decay per key channel: chunks of 128 tokens by the tree of products.

A program takes a few heads of one sequence through time, chunk after chunk; states stay in VMEM, transposed. Per token
and head of 128 channels in bfloat16 with float32 decays 1,280 bytes must move, 2.3 cycles on v5e; the forward pass
takes at most 4 bundles, most of them products of decays. Several heads side by side fill each other's waits.

The forward pass stores the state before each block of `TOKENS`. The backward pass goes over these from the last to the
first, makes the states of its chunks again, and differentiates each chunk in place: decays of 0 need no care, since
no gradient is divided by a decay.

Heads lie side by side in the last axis, (B, L, H K), as the projections before and behind give and take them.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.gated.chunk import LOG_ZERO
from lightnet.scan.gated.tiles import Tiles, output_and_state, state_behind, tiles_of
from lightnet.scan.gated.xla import gated_xla
from lightnet.scan.kernels import KEEP, REAL, flags_of, flat, heads_of_program, wrong_precision
from lightnet.scan.recurrence import Tokens, mapped_alike
from lightnet.typing import Array

CHUNK, TOKENS = 128, 512  # tokens of a chunk, and of a block that is in VMEM at once in half precision
HEADS, HEADS_BACKWARD = 4, 2  # side by side in a program, if sizes allow

Operands = tuple[Array, Array, Array, Array]
Named = list[tuple[str, Any]]  # arrays, or their shapes, and how they are cut up


class Plan(NamedTuple):
    """Sizes of one call: `heads` and `groups` of a program, `members` heads per group, tokens, chunk and blocks."""

    heads: int
    groups: int
    members: int
    key: int
    value: int
    chunk: int
    tokens: int
    blocks: int
    half: bool


def gated_tpu(
    operands: Operands, initial_state: Array, tokens: Tokens, *, interpret: bool = False
) -> tuple[Array, Array]:
    """See `gated_reference`."""
    return _scan(operands, initial_state, tokens, interpret, False)[:2]


def refusal(platform: str, operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    if wrong := wrong_precision(operands):
        return wrong
    if operands[3].shape[-1] != operands[1].shape[-1]:
        return "the kernel is for one decay per key channel"
    if _heads(operands, HEADS) is None:
        return f"sizes {operands[1].shape[-1]} and {operands[2].shape[-1]} of a head do not fill rows of 128"
    return None


def _heads(operands: Any, wanted: int) -> int | None:
    (groups, key), (heads, value) = operands[0].shape[2:], operands[2].shape[2:]
    return heads_of_program(heads, groups, key, value, wanted)


def _plan(operands: Operands, wanted: int) -> Plan:
    q, k, v, _ = operands
    found = _heads(operands, wanted)
    assert found is not None
    length, half = q.shape[1], all(x.dtype == jnp.bfloat16 for x in (q, k, v))
    chunk = min(CHUNK, max(16, 1 << (length - 1).bit_length()))
    tokens = min((TOKENS if half else TOKENS // 2) // chunk * chunk, -(-length // chunk) * chunk)
    members = v.shape[2] // q.shape[2]
    return Plan(
        found, max(found // members, 1), members, q.shape[3], v.shape[3], chunk, tokens, pl.cdiv(length, tokens), half
    )


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _scan(
    operands: Operands, initial_state: Array, tokens: Tokens, interpret: bool, store: bool
) -> tuple[Array, Array, list[Array]]:
    """Outputs, last state, and the states before each block of tokens if they are stored."""
    return _forward(operands, initial_state, tokens, store=store, interpret=interpret)


def _scan_forward(operands: Operands, initial_state: Array, tokens: Tokens, interpret: bool, store: bool) -> Any:
    o, final, before = _scan(operands, initial_state, tokens, interpret, True)
    return (o, final, before if store else []), (operands, initial_state, tokens, before)


def _scan_backward(interpret: bool, store: bool, residuals: Any, cotangents: Any) -> Any:
    operands, initial_state, tokens, before = residuals
    return *_gradient(operands, initial_state, cotangents[:2], tokens, before, interpret), None


_scan.defvjp(_scan_forward, _scan_backward)


def _forward(
    operands: Operands, initial_state: Array, tokens: Tokens, *, store: bool, interpret: bool
) -> tuple[Array, Array, list[Array]]:
    """What `_scan` says, by the kernel."""
    plan = _plan(operands, HEADS)
    batch, length, heads, value = operands[2].shape
    flags = _flags(tokens, plan, batch, length)
    dtype = jnp.result_type(*operands[:3])
    inputs = [*_given(flags, operands), ("state", initial_state.swapaxes(2, 3))]
    states = (batch, heads, value, plan.key)
    outputs = [
        ("value", jax.ShapeDtypeStruct((batch, length, heads * value), dtype)),
        ("state", jax.ShapeDtypeStruct(states, jnp.float32)),
        *[("states", jax.ShapeDtypeStruct((batch, plan.blocks, *states[1:]), jnp.float32))] * store,
    ]
    scratch = [pltpu.VMEM((plan.heads, value, plan.key), jnp.float32)]
    o, final, *before = _call(_forward_kernel, plan, inputs, outputs, scratch, backwards=False, interpret=interpret)
    o, final = mapped_alike((o.reshape(batch, length, heads, value), final.swapaxes(2, 3)), (operands, initial_state))
    return o, final, before


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _gradient(
    operands: Operands,
    initial_state: Array,
    cotangents: tuple[Array, Array],
    tokens: Tokens,
    before: list[Array],
    interpret: bool,
) -> tuple[Operands, Array]:
    """Of all operands and the initial state."""
    plan = _plan(operands, HEADS_BACKWARD)
    q, _, v, log_decay = operands
    batch, length, heads, _ = v.shape
    do, dfinal = cotangents
    flags = _flags(tokens, plan, batch, length)
    inputs = [*_given(flags, operands), ("value", flat(do)), ("states", before[0]), ("state", dfinal.swapaxes(2, 3))]
    # Heads that share a query and a key give a gradient each.
    shared = [x.dtype if plan.members == 1 else jnp.float32 for x in operands[:2]]
    kinds = [("key", shared[0]), ("key", shared[1]), ("value", v.dtype), ("key", log_decay.dtype)]
    outputs = [
        (kind, jax.ShapeDtypeStruct((batch, length, heads * getattr(plan, kind)), dtype)) for kind, dtype in kinds
    ]
    state = (plan.heads, plan.value, plan.key)
    dq, dk, dv, dlog, dstate = _call(
        _backward_kernel,
        plan,
        inputs,
        [*outputs, ("state", jax.ShapeDtypeStruct(inputs[-1][1].shape, jnp.float32))],
        [pltpu.VMEM((plan.tokens // plan.chunk, *state), jnp.float32), pltpu.VMEM(state, jnp.float32)],
        backwards=True,
        interpret=interpret,
    )
    if plan.members > 1:
        dq, dk = (
            x.reshape(*q.shape[:3], plan.members, plan.key).sum(axis=3).astype(like.dtype)
            for x, like in zip((dq, dk), operands[:2], strict=True)
        )
    dq, dk, dv, dlog = (x.reshape(like.shape) for x, like in zip((dq, dk, dv, dlog), operands, strict=True))
    return (dq, dk, dv, dlog), dstate.swapaxes(2, 3)


def _gradient_forward(*given: Any) -> Any:
    return _gradient(*given), given[:5]


def _gradient_backward(interpret: bool, residuals: Any, bars: Any) -> Any:
    """Derivatives of second order by XLA: `before` is a function of the others."""
    operands, initial_state, cotangents, tokens, before = residuals

    def gradient(operands: Operands, initial_state: Array, cotangents: Any) -> Any:
        return jax.vjp(lambda x, state: gated_xla(x, state, tokens), operands, initial_state)[1](cotangents)

    _, pull = jax.vjp(gradient, operands, initial_state, (cotangents[0].astype(jnp.float32), cotangents[1]))
    doperands, dstate, (do, dfinal) = pull(bars)
    return doperands, dstate, (do.astype(cotangents[0].dtype), dfinal), None, jax.tree.map(jnp.zeros_like, before)


_gradient.defvjp(_gradient_forward, _gradient_backward)


def _call(
    kernel: Any, plan: Plan, inputs: Named, outputs: Named, scratch: list, *, backwards: bool, interpret: bool
) -> list[Array]:
    """Run a kernel over sequences, heads and blocks of tokens; each array is cut up as its name says."""
    states = (plan.value, plan.key)

    def block(name: str) -> pl.BlockSpec:
        def at(t: Any) -> Any:
            return plan.blocks - 1 - t if backwards else t

        if name == "state":
            return pl.BlockSpec((None, plan.heads, *states), lambda b, h, t: (b, h, 0, 0))
        if name == "states":
            return pl.BlockSpec((None, None, plan.heads, *states), lambda b, h, t: (b, at(t), h, 0, 0))
        if name == "flags":
            return pl.BlockSpec((None, plan.tokens, 1), lambda b, h, t: (b, at(t), 0))
        if name == "group":
            per_group = plan.members * plan.groups
            width = plan.groups * plan.key
            return pl.BlockSpec(
                (None, plan.tokens, width), lambda b, h, t: (b, at(t), lax.div(h * plan.heads, per_group))
            )
        return pl.BlockSpec((None, plan.tokens, plan.heads * getattr(plan, name)), lambda b, h, t: (b, at(t), h))

    batch, heads = next(x for name, x in inputs if name == "state").shape[:2]
    outcome = pl.pallas_call(
        partial(kernel, plan=plan, flagged=inputs[0][0] == "flags"),
        grid=(batch, heads // plan.heads, plan.blocks),
        in_specs=[block(name) for name, _ in inputs],
        out_specs=[block(name) for name, _ in outputs],
        out_shape=[x for _, x in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(*(x for _, x in inputs))
    return list(outcome)


def _forward_kernel(*refs: Any, plan: Plan, flagged: bool) -> None:
    *flags, q, k, v, log_decay, initial, o, final = refs[: flagged + 7]
    *before, state = refs[flagged + 7 :]

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        state[...] = initial[...]

    for ref in before:
        ref[...] = state[...]

    def chunk(c: Any, _: None) -> None:
        read = _Chunk(flags, plan, c)
        for i in range(plan.heads):
            keys, values, decays = read.for_state(k, v, log_decay, i)
            queries = tiles_of(read(q, i, group=True))
            out, state[i] = output_and_state(queries, keys, values, decays, state[i], half=plan.half)
            read.write(o, i, out)

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
        read = _Chunk(flags, plan, c)
        for i in range(plan.heads):
            keys, values, decays = read.for_state(k, v, log_decay, i)
            states[c + 1, i] = state_behind(keys, values, decays, states[c, i], half=plan.half)

    def chunk(j: Any, _: None) -> None:
        c = count - 1 - j
        read = _Chunk(flags, plan, c)
        function: Any = partial(output_and_state, half=plan.half)
        for i in range(plan.heads):
            queries = tiles_of(read(q, i, group=True))
            _, pull = jax.vjp(function, queries, *read.for_state(k, v, log_decay, i), states[c, i])
            *slopes, dstate[i] = pull((read(do, i), dstate[i]))
            for ref, slope in zip((dq, dk, dv, dlog), slopes, strict=True):
                read.write(ref, i, slope if ref is dv else jnp.concatenate(slope, axis=0))

    states[0] = before[...]
    lax.fori_loop(0, count - 1, again, None)
    lax.fori_loop(0, count, chunk, None)

    @pl.when(pl.program_id(2) == plan.blocks - 1)
    def _() -> None:
        dinitial[...] = dstate[...]


class _Chunk:
    """Reads and writes one chunk of a block, head by head; what stands at masked tokens is 0."""

    def __init__(self, flags: list, plan: Plan, c: Any) -> None:
        self.plan = plan
        self.rows = pl.ds(pl.multiple_of(c * plan.chunk, plan.chunk), plan.chunk)
        flag = flags[0][self.rows, :] if flags else None
        self.keep: Any = None if flag is None else (flag & KEEP) != 0
        self.real: Any = None if flag is None else (flag & REAL) != 0

    def __call__(self, ref: Any, i: int, *, group: bool = False) -> Array:
        """(C, size) of the head i of the program, or of its group, in float32."""
        if group:
            i = i // self.plan.members if self.plan.heads >= self.plan.members else 0
        size = ref.shape[1] // (self.plan.groups if group else self.plan.heads)
        return self._clean(ref[self.rows, i * size : (i + 1) * size].astype(jnp.float32))

    def for_state(self, k: Any, v: Any, log_decay: Any, i: int) -> tuple[Tiles, Array, Tiles]:
        """Keys, values and log decays, with a reset where a run begins."""
        decay = self(log_decay, i)
        if self.keep is not None:
            decay = jnp.where(self.keep | ~self.real, decay, LOG_ZERO)
        return tiles_of(self(k, i, group=True)), self(v, i), tiles_of(decay)

    def write(self, ref: Any, i: int, x: Array) -> None:
        size = x.shape[1]
        ref[self.rows, i * size : (i + 1) * size] = self._clean(x).astype(ref.dtype)

    def _clean(self, x: Array) -> Array:
        return x if self.real is None else jnp.where(self.real, x, 0.0)


def _given(flags: list[Array], operands: Operands) -> Named:
    names = ("group", "group", "value", "key")
    return [*(("flags", x) for x in flags), *zip(names, map(flat, operands), strict=True)]


def _flags(tokens: Tokens, plan: Plan, batch: int, length: int) -> list[Array]:
    """A column for each sequence, (B, L', 1), or nothing."""
    flags = flags_of(tokens, batch, length, plan.blocks * plan.tokens)
    return [] if flags is None else [flags[..., None]]
