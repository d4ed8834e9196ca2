"""The selective recurrence in place: a loop over time that holds one state (B, N, D) and writes into its output.

Forward keeps the state that enters each chunk. Backward runs through the chunks from the last to the first, makes the
states of one chunk anew, and goes through its tokens in reverse. An array (B, L, D, N) never exists.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.linear.chunk import LinearSummary
from lightnet.scan.loop import CHUNK, kept, over_chunks, put, take
from lightnet.scan.recurrence import Tokens, mapped_alike, state_dtype
from lightnet.scan.selective.chunk import Selective, advance, gated, one_token, read, retreat, step_of
from lightnet.typing import Array


def selective_xla(operands: Selective, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """See `selective_reference`."""
    y, final = _scan(operands, initial_state.swapaxes(1, 2), tokens)
    return y, final.swapaxes(1, 2)


def summary(operands: Selective, tokens: Tokens) -> LinearSummary:
    """Decay and last state of a stretch that begins from 0, both (B, D, N), without its outputs."""
    dtype = state_dtype(*operands)
    dt, A = operands.dt.astype(dtype), operands.A.astype(dtype)
    if tokens.real is not None:
        dt = jnp.where(tokens.real[..., None], dt, 0)
    decay = jnp.exp(dt.sum(axis=1)[:, :, None] * A[None])
    if tokens.keep is not None:
        decay = jnp.where(tokens.keep.all(axis=1)[:, None, None], decay, 0)
    # Nothing of what only the output needs is computed: the compiler leaves out what nobody reads.
    _, state = selective_xla(operands._replace(D=None, z=None), jnp.zeros(decay.shape, dtype), tokens)
    return LinearSummary(decay, state)


@jax.custom_vjp
def _scan(operands: Selective, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    return _forward(operands, initial_state, tokens)[0]


def _forward(operands: Selective, initial_state: Array, tokens: Tokens) -> Any:
    length, dtype = operands.x.shape[1], initial_state.dtype
    turned = _turned(operands, dtype)

    def chunk(start: Any, size: int, carry: Any) -> Any:
        h, y, entered = carry

        def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            h, y = carry
            token = _token(turned, tokens, start + i, dtype)
            h = advance(kept(tokens.keep, h, start + i), step_of(token))
            return h, put(y, gated(read(token.C, h), token)[:, 0], start + i)

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
    turned = _turned(operands, dtype)

    def chunk(start: Any, size: int, carry: Any) -> Any:
        dh, gradients, total = carry

        def again(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            h, found = carry
            h = kept(tokens.keep, h, start + i)
            return advance(h, step_of(_token(turned, tokens, start + i, dtype))), put(found, h, i)

        def step(i: Array, carry: Any) -> Any:
            i, (dh, gradients, part) = size - 1 - i, carry
            t = start + i
            token = _token(turned, tokens, t, dtype)
            dh, found = retreat(take(before, i), token, take(dy, t)[:, None].astype(dtype), dh)
            part = jax.tree.map(jnp.add, part, (found.A, found.D))
            found = _fixed(found, None, None)
            gradients = jax.tree.map(lambda g, v: put(g, v.reshape(-1, g.shape[-1]), t), gradients, found)
            return kept(tokens.keep, dh, t), gradients, part

        shape = (dfinal.shape[0], size, *dfinal.shape[1:])
        before = lax.fori_loop(0, size, again, (take(entered, start // CHUNK), jnp.zeros(shape, dtype)))[1]
        zero = jax.tree.map(jnp.zeros_like, total)
        dh, gradients, part = lax.fori_loop(0, size, step, (dh, gradients, zero))
        # Summed within a chunk first: over a long sequence the rounding of one running sum would show.
        return dh, gradients, jax.tree.map(jnp.add, total, part)

    gradients = _fixed(jax.tree.map(jnp.zeros_like, operands), None, None)
    batch, _, channels = dfinal.shape
    total = (jnp.zeros_like(dfinal), None if operands.D is None else jnp.zeros((batch, 1, channels), dtype))
    dh, gradients, (dA, dD) = over_chunks(length, chunk, (dfinal, gradients, total), reverse=True)
    dA = dA.sum(axis=0).T.astype(operands.A.dtype)
    dD = None if dD is None else dD.sum(axis=(0, 1)).astype(operands.D.dtype)
    return _fixed(gradients, dA, dD), dh, None


_scan.defvjp(_forward, _backward)


def _turned(operands: Selective, dtype: Any) -> Selective:
    """With A as (B, N, D) and D as (1, 1, D) in the precision of the state, once for all tokens."""
    # With an A that all rows share, XLA on CPU counts more operations than bytes and spreads every step over threads,
    # which takes two to three times as long as the step.
    A = jnp.broadcast_to(operands.A.T[None], (operands.x.shape[0], *operands.A.shape[::-1]))
    D = None if operands.D is None else operands.D[None, None]
    return _fixed(operands, *jax.tree.map(lambda v: v.astype(dtype), (A, D)))


def _token(turned: Selective, tokens: Tokens, t: Any, dtype: Any) -> Selective:
    """The operands of token t as `Selective` says, in the precision of the state."""
    token = jax.tree.map(lambda v: take(v, t).astype(dtype), _fixed(turned, None, None))
    if tokens.real is not None:
        token = token._replace(dt=jnp.where(take(tokens.real, t)[:, None], token.dt, 0))
    return one_token(_fixed(token, turned.A, turned.D))


def _fixed(operands: Selective, A: Any, D: Any) -> Selective:
    """With other arrays in the place of what does not depend on the token."""
    return operands._replace(A=A, D=D)
