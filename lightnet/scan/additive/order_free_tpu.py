"""LightNet without an order on TPUs: a softmax over the whole sequence, one pass for the keys and one for the queries.

The keys and values of a head go through VMEM once, with the running maximum and sum of each key channel, and leave
S^T (V, K) of normalised keys; then the queries go through it. Each array moves once, 4 of them: per token and head of
128 channels in bfloat16 1,024 bytes, 1.9 cycles on v5e, and two products of matrices.

Backward, also in two passes, over 7 arrays: queries and gradients of outputs give dS and dq; then keys and values give

    P = exp(a - maximum) / total,  dv = P dS,  da = P * (V dS^T - c),  c_k = sum_v S_kv dS_kv,

where c, the mean of the key's gradient under the key, needs no pass of its own.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.additive.chunk import finite
from lightnet.scan.additive.order_free import Operands, global_xla
from lightnet.scan.kernels import REAL, flags_of, flat, heads_of_program, matmul, wrong_precision
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

TOKENS = 512  # of a block that is in VMEM at once, in half precision
HEADS = 4  # side by side in a program, if sizes allow
Named = list[tuple[str, Any]]  # arrays, or their shapes, and how they are cut up


class Plan(NamedTuple):
    """Sizes of one call."""

    heads: int
    key: int
    value: int
    tokens: int
    blocks: int
    half: bool


class Normalised(NamedTuple):
    """S^T (B, H, V, K) of normalised keys; the maximum of the logits and the sum of their exponentials (B, H, 1, K)."""

    state: Array
    maximum: Array
    total: Array


def global_tpu(
    operands: Operands, initial_state: None, tokens: Tokens, *, num_segments: int, interpret: bool = False
) -> Array:
    """See `global_reference`, for one segment and without key factors."""
    return _attend(*operands[:3], tokens, interpret)[0]


def global_refusal(platform: str, operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    q, _, v, factor, runs = operands
    if wrong := wrong_precision(operands[:3]):
        return wrong
    if factor is not None or runs is not None:
        return "the kernel is for one segment, without key factors"
    (heads, key), value = q.shape[2:], v.shape[3]
    if heads_of_program(heads, heads, key, value, HEADS) is None:
        return f"sizes {key} and {value} of a head do not fill rows of 128"
    return None


def _plan(q: Array, logits: Array, v: Array) -> Plan:
    (_, length, heads, key), value = q.shape, v.shape[3]
    some = heads_of_program(heads, heads, key, value, HEADS)
    assert some is not None
    half = all(x.dtype == jnp.bfloat16 for x in (q, logits, v))
    tokens = min(TOKENS if half else TOKENS // 2, -(-length // 16) * 16)
    return Plan(some, key, value, tokens, pl.cdiv(length, tokens), half)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, logits: Array, v: Array, tokens: Tokens, interpret: bool) -> tuple[Array, Normalised]:
    """Outputs, and what the backward pass needs besides the inputs."""
    plan = _plan(q, logits, v)
    batch, length, heads, _ = v.shape
    shapes = [(plan.value, plan.key), (1, plan.key), (1, plan.key)]
    o, *rest = _call(
        _forward_kernel,
        plan,
        [*_flags(tokens, plan, batch, length), ("late key", flat(q)), ("key", flat(logits)), ("value", flat(v))],
        [
            ("late value", jax.ShapeDtypeStruct((batch, length, heads * plan.value), jnp.result_type(q, logits, v))),
            *(("state", jax.ShapeDtypeStruct((batch, heads, *x), jnp.float32)) for x in shapes),
        ],
        [],
        heads,
        interpret=interpret,
    )
    return o.reshape(v.shape), Normalised(*rest)


def _attend_forward(q: Array, logits: Array, v: Array, tokens: Tokens, interpret: bool) -> Any:
    o, normalised = _attend(q, logits, v, tokens, interpret)
    return (o, normalised), (q, logits, v, tokens, normalised)


def _attend_backward(interpret: bool, residuals: Any, cotangents: tuple[Array, Any]) -> Any:
    return *_gradient(*residuals, cotangents[0], interpret), None


_attend.defvjp(_attend_forward, _attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _gradient(
    q: Array, logits: Array, v: Array, tokens: Tokens, normalised: Normalised, do: Array, interpret: bool
) -> tuple[Array, Array, Array]:
    plan = _plan(q, logits, v)
    batch, length, heads, _ = v.shape
    slopes = [
        (name, jax.ShapeDtypeStruct(flat(x).shape, x.dtype))
        for name, x in (("key", q), ("late key", logits), ("late value", v))
    ]
    given = [("key", flat(q)), ("value", flat(do)), ("late key", flat(logits)), ("late value", flat(v))]
    dq, dlogits, dv = _call(
        _backward_kernel,
        plan,
        [*_flags(tokens, plan, batch, length), *given, *(("state", x) for x in normalised)],
        slopes,
        [pltpu.VMEM((plan.heads, plan.value, plan.key), jnp.float32)],
        heads,
        interpret=interpret,
    )
    return dq.reshape(q.shape), dlogits.reshape(logits.shape), dv.reshape(v.shape)


def _gradient_forward(*given: Any) -> Any:
    return _gradient(*given), given[:6]


def _gradient_backward(interpret: bool, residuals: Any, bars: Any) -> Any:
    """Derivatives of second order by XLA: what was normalised is a function of the operands."""
    *operands, tokens, normalised, do = residuals

    def gradient(operands: Any, do: Array) -> Any:
        function: Any = lambda *x: global_xla((*x, None, None), None, tokens, num_segments=1)  # noqa: E731
        o, pull = jax.vjp(function, *operands)
        return pull(do.astype(o.dtype))

    doperands, ddo = jax.vjp(gradient, operands, do)[1](bars)
    return *doperands, None, jax.tree.map(jnp.zeros_like, normalised), ddo


_gradient.defvjp(_gradient_forward, _gradient_backward)


def _call(
    kernel: Any, plan: Plan, inputs: Named, outputs: Named, scratch: list, heads: int, *, interpret: bool
) -> list[Array]:
    """Run a kernel over sequences, heads, two passes and blocks of tokens.

    An array that one pass does not use stays at the block that the other pass begins or ends with: nothing moves.
    """

    def block(name: str, x: Any) -> pl.BlockSpec:
        def at(late: bool, phase: Any, t: Any) -> Any:
            return phase * t if late else t + phase * (plan.blocks - 1 - t)

        if name == "state":
            return pl.BlockSpec((None, plan.heads, *x.shape[2:]), lambda b, h, p, t: (b, h, 0, 0))
        if name == "flags":
            return pl.BlockSpec((None, plan.tokens, 1), lambda b, h, p, t: (b, t, 0))
        late, size = name.startswith("late"), getattr(plan, name.removeprefix("late "))
        return pl.BlockSpec((None, plan.tokens, plan.heads * size), lambda b, h, p, t: (b, at(late, p, t), h))

    outcome = pl.pallas_call(
        partial(kernel, plan=plan),
        grid=(inputs[0][1].shape[0], heads // plan.heads, 2, plan.blocks),
        in_specs=[block(*x) for x in inputs],
        out_specs=[block(*x) for x in outputs],
        out_shape=[x for _, x in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        interpret=interpret,
    )(*(x for _, x in inputs))
    return list(outcome)


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    *flags, q, logits, v, o, state, maximum, total = refs
    late, t = pl.program_id(2), pl.program_id(3)
    read = partial(_read, flags, plan)

    @pl.when((late == 0) & (t == 0))
    def _() -> None:
        state[...], total[...] = jnp.zeros_like(state), jnp.zeros_like(total)
        maximum[...] = jnp.full(maximum.shape, -jnp.inf, jnp.float32)

    @pl.when(late == 0)
    def _() -> None:
        for i in range(plan.heads):
            a = read(logits, i, plan.key, -jnp.inf)
            new = jnp.maximum(maximum[i], a.max(axis=0, keepdims=True))
            keys, old = jnp.exp(a - finite(new)), jnp.exp(maximum[i] - finite(new))
            total[i] = old * total[i] + keys.sum(axis=0, keepdims=True)
            state[i] = old * state[i] + matmul(read(v, i, plan.value), keys, "tn", plan.half)
            maximum[i] = new

    @pl.when((late == 0) & (t == plan.blocks - 1))
    def _() -> None:
        total[...] = jnp.where(total[...] > 0, total[...], 1.0)
        state[...] = state[...] / total[...]
        maximum[...] = finite(maximum[...])

    @pl.when(late == 1)
    def _() -> None:
        for i in range(plan.heads):
            _write(o, i, plan.value, matmul(read(q, i, plan.key), state[i], "nt", plan.half))


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    *flags, q, do, logits, v, state, maximum, total, dq, dlogits, dv, dstate = refs
    late, t = pl.program_id(2), pl.program_id(3)
    read = partial(_read, flags, plan)

    @pl.when((late == 0) & (t == 0))
    def _() -> None:
        dstate[...] = jnp.zeros_like(dstate)

    @pl.when(late == 0)
    def _() -> None:
        for i in range(plan.heads):
            bar = read(do, i, plan.value)
            dstate[i] += matmul(bar, read(q, i, plan.key), "tn", plan.half)
            _write(dq, i, plan.key, matmul(bar, state[i], "nn", plan.half))

    @pl.when(late == 1)
    def _() -> None:
        for i in range(plan.heads):
            keys = jnp.exp(read(logits, i, plan.key, -jnp.inf) - maximum[i]) / total[i]
            mean = (state[i] * dstate[i]).sum(axis=0, keepdims=True)
            keys_bar = matmul(read(v, i, plan.value), dstate[i], "nn", plan.half)
            _write(dlogits, i, plan.key, keys * (keys_bar - mean))
            _write(dv, i, plan.value, matmul(keys, dstate[i], "nt", plan.half))


def _read(flags: list, plan: Plan, ref: Any, i: int, size: int, masked: float = 0.0) -> Array:
    """(tokens, size) of the head i of the program in float32, with a number in the place of masked tokens."""
    x = ref[:, i * size : (i + 1) * size].astype(jnp.float32)
    return jnp.where((flags[0][...] & REAL) != 0, x, masked) if flags else x


def _write(ref: Any, i: int, size: int, x: Array) -> None:
    ref[:, i * size : (i + 1) * size] = x.astype(ref.dtype)


def _flags(tokens: Tokens, plan: Plan, batch: int, length: int) -> Named:
    flags = flags_of(tokens, batch, length, plan.blocks * plan.tokens)
    return [] if flags is None else [("flags", flags[..., None])]
