"""Gated linear attention on any platform: a loop over chunks that reads and writes the arrays in place.

The forward pass stores the state before each chunk for the backward pass, which computes everything else of a chunk
again and differentiates it. So nothing of the size of a state is ever kept per token.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.gated.chunk import GatedSummary, combine, gated_chunk, stretch
from lightnet.scan.recurrence import Tokens, mapped_alike, only_real, state_dtype
from lightnet.typing import Array

# The fastest on CPU: the work of the prefix-product tree grows with the chunk, that of scalar decays hardly does.
VECTOR_CHUNK, SCALAR_CHUNK = 16, 32

Operands = tuple[Array, Array, Array, Array]


def gated_xla(operands: Operands, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """See `gated_reference`."""
    o, final = _chunks(*_padded(operands, tokens), initial_state)
    return o[:, : operands[0].shape[1]], final


def summary(operands: Operands, tokens: Tokens) -> GatedSummary:
    """Product of decays and last state of a stretch that begins from 0, without queries and outputs."""
    operands, tokens = _padded(operands, tokens)
    (_, k, v, log_decay), dtype = operands, state_dtype(*operands)
    batch, _, heads, decays = log_decay.shape
    start = GatedSummary(
        jnp.ones((batch, heads, decays), dtype), jnp.zeros((batch, heads, k.shape[-1], v.shape[-1]), dtype)
    )

    @jax.checkpoint
    def step(before: GatedSummary, chunk: Any) -> tuple[GatedSummary, None]:
        (k, v, log_decay), tokens = chunk
        _, k, v, log_decay = _by_head((k, k, v, log_decay), tokens, dtype)
        here = stretch(k, v, log_decay)
        return combine(before, GatedSummary(*(x.reshape(y.shape) for x, y in zip(here, before, strict=True)))), None

    size = _chunk_size(log_decay)
    split = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0), ((k, v, log_decay), tokens)
    )
    return lax.scan(step, start, split)[0]


@jax.custom_vjp
def _chunks(operands: Operands, tokens: Tokens, initial_state: Array) -> tuple[Array, Array]:
    return _run(operands, tokens, initial_state, store=False)[:2]


def _chunks_forward(operands: Operands, tokens: Tokens, initial_state: Array) -> Any:
    o, final, before = _run(operands, tokens, initial_state, store=True)
    return (o, final), (operands, tokens, before)


def _chunks_backward(residuals: Any, cotangents: tuple[Array, Array]) -> Any:
    operands, tokens, before = residuals
    do, dfinal = cotangents
    count = before.shape[0]
    size = do.shape[1] // count

    def step(j: Array, carry: tuple[Array, Operands]) -> tuple[Array, Operands]:
        dstate, grads = carry
        i = count - 1 - j
        flags = _at(tokens, i, size)
        _, transpose = jax.vjp(lambda here, state: _chunk(here, flags, state), _at(operands, i, size), before[i])
        dhere, dstate = transpose((_at(do, i, size), dstate))
        return dstate, jax.tree.map(lambda whole, part: _put(whole, part, i), grads, dhere)

    dstate, grads = lax.fori_loop(0, count, step, (dfinal, jax.tree.map(jnp.zeros_like, operands)))
    return grads, None, dstate


_chunks.defvjp(_chunks_forward, _chunks_backward)


def _run(operands: Operands, tokens: Tokens, state: Array, *, store: bool) -> tuple[Array, Array, Array]:
    """Outputs, last state, and the states before each chunk (chunks, B, H, K, V) if they are stored."""
    _, _, v, log_decay = operands
    size = _chunk_size(log_decay)
    count = v.shape[1] // size

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        state, o, before = carry
        if store:
            before = lax.dynamic_update_index_in_dim(before, state, i, axis=0)
        here, state = _chunk(_at(operands, i, size), _at(tokens, i, size), state)
        return state, _put(o, here, i), before

    before = jnp.zeros((count if store else 0, *state.shape), state.dtype)
    state, o, before = lax.fori_loop(0, count, step, (state, jnp.zeros(v.shape, state.dtype), before))
    o, state = mapped_alike((o, state), (operands, tokens, state))
    return o, state, before


def _chunk(operands: Operands, tokens: Tokens, state: Array) -> tuple[Array, Array]:
    """`gated_chunk` in the layout (B, C, heads, size) of the operands."""
    q, k, v, log_decay = _by_head(operands, tokens, state.dtype)
    o, after = gated_chunk(q, k, v, log_decay, state.reshape(*v.shape[:3], *state.shape[2:]))
    batch, groups, members, length, size = o.shape
    o = jnp.moveaxis(o, 3, 1).reshape(batch, length, groups * members, size)
    return o, after.reshape(state.shape)


def _by_head(operands: Operands, tokens: Tokens, dtype: Any) -> Operands:
    """(B, G, H / G, C, size), q and k with one head per group; resets where runs begin, no effect of masked tokens."""
    groups = operands[0].shape[2]

    def split(x: Array) -> Array:
        batch, length, heads, size = x.shape
        return jnp.moveaxis(x.reshape(batch, length, groups, heads // groups, size), 1, 3).astype(dtype)

    q, k, v, log_decay = (split(x) for x in only_real(tokens, *operands))
    if tokens.keep is not None:
        log_decay = jnp.where(tokens.keep[:, None, None, :, None], log_decay, -jnp.inf)
    return q, k, v, log_decay


def _chunk_size(log_decay: Array) -> int:
    """A power of two that is not much longer than the sequence."""
    length = log_decay.shape[1]
    return min(SCALAR_CHUNK if log_decay.shape[-1] == 1 else VECTOR_CHUNK, 1 << (length - 1).bit_length())


def _padded(operands: Operands, tokens: Tokens) -> tuple[Operands, Tokens]:
    """Whole chunks: tokens with a key of 0 and a decay of 1 behind the sequence."""
    extra = -operands[0].shape[1] % _chunk_size(operands[3])
    if not extra:
        return operands, tokens
    return jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2), constant_values=x.dtype == jnp.bool_),
        (operands, tokens),
    )


def _at(tree: Any, i: Array, size: int) -> Any:
    """The i-th chunk of arrays (B, L, ...)."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i * size, size, axis=1), tree)


def _put(whole: Array, part: Array, i: Array) -> Array:
    return lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), i * part.shape[1], axis=1)
