"""h_t = a_t h_{t-1} + b_t in place: a loop over time that writes into its output, forward and backward.

The loop reads and writes each array once, in the layout that it has, and holds nothing but one state besides. Its
adjoint is a loop of the same kind in the other direction that multiplies after the output instead of before it,

    g_t = dh_t + c_{t+1},    c_t = a_t g_t,    db_t = g_t,    da_t = g_t h_{t-1},

where automatic differentiation would copy the output at every step. The adjoint's adjoint is the first loop again, so
derivatives of any order cost as little.

The state is kept in float32 at least, the outputs in the dtype of a b. With bfloat16 operands da_t is therefore made of
two numbers with 8 bits each: it is as exact as bfloat16 is, to two or three roundings.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.linear.chunk import LinearSummary
from lightnet.scan.loop import over_chunks, take
from lightnet.scan.recurrence import Tokens, mapped_alike, only_real, state_dtype
from lightnet.typing import Array


def linear_xla(
    operands: tuple[Array, Array], initial_state: Array, tokens: Tokens, *, reverse: bool
) -> tuple[Array, Array]:
    """See `linear_reference`; h in the dtype of a b. What stands at masked tokens is not used."""
    h, final = scan(*operands, initial_state, tokens, reverse, False, loop)
    (h,) = only_real(tokens, h)
    return h, final


def summary(operands: tuple[Array, Array], tokens: Tokens, *, reverse: bool) -> LinearSummary:
    """Product of decays and last state of a stretch that begins from 0, without its outputs."""
    return _summary(operands, tokens, reverse)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _summary(operands: tuple[Array, Array], tokens: Tokens, reverse: bool) -> LinearSummary:
    a, b = operands
    zero = jnp.zeros((b.shape[0], b.shape[2]), state_dtype(a, b))

    def step(i: Array, carry: LinearSummary) -> LinearSummary:
        decay, value, keep, real = _token(a, b, tokens, _time(i, b, reverse), zero.dtype)
        after = LinearSummary(_where(keep, decay * carry.decay), _where(keep, decay * carry.state) + value)
        return LinearSummary(*(_where(real, new, old) for new, old in zip(after, carry, strict=True)))

    return mapped_alike(lax.fori_loop(0, b.shape[1], step, LinearSummary(zero + 1, zero)), (operands, tokens))


def _summary_forward(operands: tuple[Array, Array], tokens: Tokens, reverse: bool) -> Any:
    return _summary(operands, tokens, reverse), (operands, tokens)


def _summary_backward(reverse: bool, residuals: Any, cotangent: LinearSummary) -> Any:
    """Both parts are last states of a scan: the decay's with 1 at the start and nothing behind it."""
    (a, b), tokens = residuals

    def last_states(a: Array, b: Array) -> LinearSummary:
        start = LinearSummary(jnp.ones_like(cotangent.decay), jnp.zeros_like(cotangent.state))
        inputs = LinearSummary(jnp.zeros_like(b), b)
        return LinearSummary(
            *(scan(a, x, h, tokens, reverse, False, loop)[1] for x, h in zip(inputs, start, strict=True))
        )

    return jax.vjp(last_states, a, b)[1](cotangent), None


_summary.defvjp(_summary_forward, _summary_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def scan(
    a: Array, b: Array, initial: Array, tokens: Tokens, reverse: bool, late: bool, run: Callable
) -> tuple[Array, Array]:
    """The state behind every token, masked ones too, and the last one, differentiable to any order.

    Args:
        a: (B or 1, L or 1, D).
        b: (B, L, D).
        initial: (B, D), in the precision of the state.
        tokens: which tokens begin a run, and which are real.
        reverse: from the last token to the first.
        late: multiply by a_t after the output: out_t = s_{t-1} + b_t, s_t = a_t out_t. It takes the cotangents of the
            states as b, also those of masked tokens, where s_t = out_t; at these the outputs are never used.
        run: how it is computed, from the same arguments: `loop`, or a kernel.

    Returns:
        out (B, L, D) in the dtype of a b, and the last state (B, D).
    """
    return run(a, b, initial, tokens, reverse, late)


def _scan_forward(a: Array, b: Array, initial: Array, tokens: Tokens, reverse: bool, late: bool, run: Callable) -> Any:
    out, final = scan(a, b, initial, tokens, reverse, late, run)
    return (out, final), (a, jnp.zeros(0, b.dtype), initial, tokens, out)


def _scan_backward(reverse: bool, late: bool, run: Callable, residuals: Any, cotangents: tuple[Array, Array]) -> Any:
    a, like_b, initial, tokens, out = residuals
    adjoint, d_initial = scan(a, *cotangents, tokens, not reverse, not late, run)
    if late:
        da = _decay_gradient(a, out, adjoint, cotangents[1], tokens, not reverse)
    else:
        da = _decay_gradient(a, adjoint, out, initial, tokens, reverse)
        (adjoint,) = only_real(tokens, adjoint)
    return da, _cast(adjoint, like_b.dtype), d_initial, None


scan.defvjp(_scan_forward, _scan_backward)


def loop(a: Array, b: Array, initial: Array, tokens: Tokens, reverse: bool, late: bool) -> tuple[Array, Array]:
    """What `scan` says, in place.

    It carries out_t, not s_t: a product that is rounded by itself, by an a near 1, is rounded the same way again and
    again.
    """
    length, dtype = b.shape[1], jnp.result_type(a, b)

    def token(i: Any) -> tuple[Array, Array, Array | None, Array | None]:
        return _token(a, b, tokens, _time(i, b, reverse), initial.dtype)

    def put(out: Array, value: Array, i: Any) -> Array:
        t = _time(i, b, reverse)
        return lax.dynamic_update_slice_in_dim(out, _bits(value.astype(dtype))[:, None], t, axis=1)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        state, out = carry
        value = token(i)[1]
        decay, _, keep, real = token(i - 1 if late else i)
        state = _where(real, _where(keep, decay * state) + value, state + value if late else state)
        return state, put(out, state, i)

    # Every element is overwritten. XLA would share a constant among all loops, at the price of a copy for each.
    out = _bits(jnp.broadcast_to(b[:, :1], b.shape).astype(dtype))
    if not late:
        final, out = lax.fori_loop(0, length, step, (initial, out))
        return _from_bits(out, dtype), final
    first = initial + token(0)[1]
    last, out = lax.fori_loop(1, length, step, (first, put(out, first, 0)))
    decay, _, keep, real = token(length - 1)
    return _from_bits(out, dtype), _where(real, _where(keep, decay * last), last)


def _decay_gradient(a: Array, g: Array, h: Array, initial: Array, tokens: Tokens, reverse: bool) -> Array:
    """da_t = g_t h_{t-1}, summed over the axes along which a is constant; 0 where the state before does not count."""
    if a.shape[1] == 1:
        return _constant_decay_gradient(a, g, h, initial, tokens, reverse)
    h = h.astype(initial.dtype)
    before = jnp.concatenate([h[:, 1:], initial[:, None]] if reverse else [initial[:, None], h[:, :-1]], axis=1)
    da = g.astype(initial.dtype) * before
    for flag in tokens:
        if flag is not None:
            da = jnp.where(flag[..., None], da, 0)
    return _cast(da.sum(axis=0, keepdims=True) if a.shape[0] == 1 else da, a.dtype)


def _constant_decay_gradient(a: Array, g: Array, h: Array, initial: Array, tokens: Tokens, reverse: bool) -> Array:
    """The sum over tokens in a loop, since XLA would write out its terms."""

    def term(t: Any, before: Array) -> Array:
        product = take(g, t).astype(initial.dtype) * before.astype(initial.dtype)
        for flag in tokens:
            if flag is not None:
                product = jnp.where(take(flag, t)[:, None], product, 0)
        return product

    def chunk(start: Any, size: int, total: Array) -> Array:
        def step(i: Array, part: Array) -> Array:
            t = start + i + (0 if reverse else 1)
            return part + term(t, take(h, t + 1 if reverse else t - 1))

        return total + lax.fori_loop(0, size, step, jnp.zeros_like(total))

    length = g.shape[1]
    da = over_chunks(length - 1, chunk, term(length - 1 if reverse else 0, initial))
    return _cast(da.sum(axis=0, keepdims=True) if a.shape[0] == 1 else da, a.dtype)[:, None]


def _time(i: Any, b: Array, reverse: bool) -> Any:
    return b.shape[1] - 1 - i if reverse else i


def _token(a: Array, b: Array, tokens: Tokens, t: Any, dtype: Any) -> tuple[Array, Array, Array | None, Array | None]:
    """Decay (B or 1, D), input (B, D) and the two flags (B, 1) of one token."""

    def at(x: Array) -> Array:
        row = lax.dynamic_index_in_dim(_bits(x), t, axis=1, keepdims=False, allow_negative_indices=False)
        return _from_bits(row, x.dtype)

    decay = (a[:, 0] if a.shape[1] == 1 else at(a)).astype(dtype)
    keep, real = (None if flag is None else at(flag)[:, None] for flag in tokens)
    return decay, at(b).astype(dtype), keep, real


def _bits(x: Array) -> Array:
    """Half-precision numbers as integers: on CPU, XLA would turn the arrays of a loop into float32, at every step."""
    half = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2
    return lax.bitcast_convert_type(x, jnp.uint16) if half else x


def _from_bits(x: Array, dtype: Any) -> Array:
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)


def _where(flag: Array | None, x: Array, other: Array | float = 0.0) -> Array:
    return x if flag is None else jnp.where(flag, x, jnp.asarray(other, x.dtype))


def _cast(x: Array, dtype: Any) -> Array:
    """To a dtype; the cotangent of a real number is the real part."""
    return (x.real if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating) else x).astype(dtype)
