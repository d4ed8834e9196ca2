"""The diagonal recurrence in place: a loop over time that holds one state (B, N, D) and writes into its output.

Forward keeps the state that enters each chunk. Backward runs through the chunks from the last to the first, makes the
states of one chunk anew, and goes through its tokens in reverse. An array (B, L, D, N) never exists.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.diagonal.chunk import (
    Diagonal,
    Weights,
    advance,
    of_readout,
    power,
    real_products,
    retreat,
    sum_over_states,
)
from lightnet.scan.linear.chunk import LinearSummary
from lightnet.scan.loop import CHUNK, kept, over_chunks, put, take
from lightnet.scan.recurrence import Tokens, mapped_alike, state_dtype
from lightnet.typing import Array


def diagonal_xla(operands: Diagonal, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """See `diagonal_reference`."""
    y, final = _scan(operands, initial_state.swapaxes(1, 2), tokens)
    return y, final.swapaxes(1, 2)


def summary(operands: Diagonal, tokens: Tokens) -> LinearSummary:
    """Decay and last state of a stretch that begins from 0, both (B, D, N), without its outputs."""
    dtype, (batch, length) = state_dtype(*operands), operands.x.shape[:2]
    count = jnp.array([length]) if tokens.real is None else tokens.real.sum(axis=1)
    decay = power(operands.a.astype(dtype).T[None], count[:, None, None], length)
    decay = jnp.broadcast_to(decay.swapaxes(1, 2), (batch, *operands.a.shape))
    if tokens.keep is not None:
        decay = jnp.where(tokens.keep.all(axis=1)[:, None, None], decay, 0)
    # The compiler leaves out the outputs, which nobody reads.
    _, state = diagonal_xla(operands, jnp.zeros(decay.shape, dtype), tokens)
    return LinearSummary(decay, state)


@jax.custom_vjp
def _scan(operands: Diagonal, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    return _forward(operands, initial_state, tokens)[0]


def _forward(operands: Diagonal, initial_state: Array, tokens: Tokens) -> Any:
    length, dtype = operands.x.shape[1], initial_state.dtype
    x, weights = operands.x, weights_of(operands, dtype)

    def chunk(start: Any, size: int, carry: Any) -> Any:
        h, y, entered = carry

        def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            h, y = carry
            h = _next(h, x, weights, tokens, start + i)
            return h, put(y, sum_over_states(real_products(weights.c, (h,)))[:, 0], start + i)

        entered = put(entered, h, start // CHUNK)
        return *lax.fori_loop(0, size, step, (h, y)), entered

    batch, *rest = initial_state.shape
    entered = jnp.zeros((batch, -(-length // CHUNK), *rest), dtype)
    final, y, entered = over_chunks(length, chunk, (initial_state, jnp.zeros_like(operands.x), entered))
    return mapped_alike((y, final), (operands, tokens, initial_state)), (operands, tokens, entered)


def _backward(residuals: Any, cotangents: tuple[Array, Array]) -> Any:
    operands, tokens, entered = residuals
    dy, dfinal = cotangents
    length, dtype = operands.x.shape[1], dfinal.dtype
    x, weights = operands.x, weights_of(operands, dtype)

    def chunk(start: Any, size: int, carry: Any) -> Any:
        dh, dx, total = carry

        def again(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            h, found = carry
            return _next(h, x, weights, tokens, start + i), put(found, kept(tokens.keep, h, start + i), i)

        def step(i: Array, carry: Any) -> Any:
            i, (dh, dx, part) = size - 1 - i, carry
            t = start + i
            found, token, out = (take(before, i),), _input(x, t, weights), take(dy, t)[:, None]
            dc = of_readout(advance(found, token, weights), out)
            # At a masked token dy is 0, and what is behind it goes to what is before it untouched.
            (dbefore,), terms, da, db = retreat(found, token, weights, out, (kept(tokens.real, dh, t),))
            dbefore = _pass(tokens, t, kept(tokens.keep, dbefore, t), dh)
            part = jax.tree.map(jnp.add, part, Weights(da, db, dc))
            return dbefore, put(dx, sum_over_states(terms)[:, 0], t), part

        shape = (dfinal.shape[0], size, *dfinal.shape[1:])
        before = lax.fori_loop(0, size, again, (take(entered, start // CHUNK), jnp.zeros(shape, dtype)))[1]
        zero = jax.tree.map(jnp.zeros_like, total)
        dh, dx, part = lax.fori_loop(0, size, step, (dh, dx, zero))
        # Summed within a chunk first: over a long sequence the rounding of one running sum would show.
        return dh, dx, jax.tree.map(jnp.add, total, part)

    total = Weights(*((jnp.zeros_like(dfinal),),) * 3)
    dh, dx, total = over_chunks(length, chunk, (dfinal, jnp.zeros_like(operands.x), total), reverse=True)
    gradients = (in_kind_of(g.sum(axis=0).T, v) for (g,), v in zip(total, operands[1:], strict=True))
    return Diagonal(dx, *gradients), dh, None


_scan.defvjp(_forward, _backward)


def weights_of(operands: Diagonal, dtype: Any) -> Weights:
    """a, b and c as (1, N, D) in the precision of the state, once for all tokens."""
    return Weights(*((v.astype(dtype).T[None],) for v in operands[1:]))


def _input(x: Array, t: Any, weights: Weights) -> Array:
    """x at token t, (B, 1, D), in the precision of the state."""
    return take(x, t)[:, None].astype(jnp.finfo(weights.a[0].dtype).dtype)


def _next(h: Array, x: Array, weights: Weights, tokens: Tokens, t: Any) -> Array:
    """The state behind token t."""
    (after,) = advance((kept(tokens.keep, h, t),), _input(x, t, weights), weights)
    return _pass(tokens, t, after, h)


def _pass(tokens: Tokens, t: Any, real: Array, masked: Array) -> Array:
    """The first where token t is real, the second where it is masked."""
    return real if tokens.real is None else jnp.where(take(tokens.real, t)[:, None, None], real, masked)


def in_kind_of(gradient: Array, operand: Array) -> Array:
    """In the dtype of the operand; the cotangent of a real number is the real part."""
    return (gradient if jnp.iscomplexobj(operand) else gradient.real).astype(operand.dtype)
