"""LightNet chunk by chunk, forward and backward, with one state kept per chunk.

A loop over chunks slices them from the operands where they lie and writes outputs in place. Its backward pass is the
same loop in the other direction; it computes what a chunk holds again from the state that entered it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.additive.chunk import (
    AdditiveState,
    AdditiveSummary,
    Chunk,
    Relative,
    add,
    chunk_gradient,
    chunk_output,
    comfortable,
    dot,
    exact_chunk,
    exact_gradient,
    finite,
    per_channel,
    relative,
    sight,
)
from lightnet.scan.additive.reference import Operands
from lightnet.scan.recurrence import Tokens, mapped_alike
from lightnet.typing import Array

CHUNK = 64  # 16 and 128 are slower on CPU, 32 as fast with twice the states
BLOCK = 8  # a chunk is a multiple of it


def additive_xla(operands: Operands, initial_state: AdditiveState, tokens: Tokens) -> tuple[Array, AdditiveState]:
    """See `additive_reference`; the output has the dtype of q, key logits and v."""
    q, logits, v, factor = operands
    length = v.shape[1]
    chunk = min(CHUNK, -(-length // BLOCK) * BLOCK)
    missing = -length % chunk
    real = tokens.real
    if real is not None:
        logits = jnp.where(real[..., None, None], logits, -jnp.inf)
    elif missing:
        real = jnp.ones((1, length), bool)
    if missing:
        tokens = Tokens(_padded(tokens.keep, missing, True), _padded(real, missing, False))
        q, logits, v = _padded(q, missing, 0.0), _padded(logits, missing, -jnp.inf), _padded(v, missing, 0.0)
        factor = _padded(factor, missing, 0.0)
    o, final = _scan((q, logits, v, factor), initial_state, tokens, chunk)
    return o[:, :length], final


def summary(operands: Operands, tokens: Tokens) -> AdditiveSummary:
    """The last run of a stretch that begins empty, and whether a run began inside; one product of keys and values."""
    _, logits, v, factor = operands
    dtype = jnp.result_type(jnp.float32, *(x for x in operands if x is not None))
    logits, counts = logits.astype(dtype), tokens.real
    restarts = jnp.zeros(logits.shape[0], bool)
    if tokens.keep is not None:
        last = _of_last_run(tokens.keep)
        counts = last if counts is None else last & counts
        restarts = ~tokens.keep.all(axis=1)
    if counts is not None:
        logits = jnp.where(counts[..., None, None], logits, -jnp.inf)
    maximum = logits.max(axis=1)
    keys = jnp.exp(logits - finite(maximum)[:, None])
    total = keys.sum(axis=1)
    if factor is not None:
        keys = keys[..., None, :] * factor.astype(dtype)
        keys = keys.reshape((*keys.shape[:3], -1))
    state = dot("blhk,blhv->bhkv", keys, v.astype(dtype))
    return AdditiveSummary(AdditiveState(maximum, total, state), restarts)


def slopes(
    operands: Operands, initial_state: AdditiveState, tokens: Tokens, cotangents: tuple[Array, AdditiveState]
) -> tuple[Operands, AdditiveState]:
    """Gradients of the operands and the initial state, of those of the outputs in any precision and the final state."""
    (o, _), pull = jax.vjp(lambda x, state: additive_xla(x, state, tokens), operands, initial_state)
    return pull((cotangents[0].astype(o.dtype), cotangents[1]))


def second_order(
    operands: Operands,
    initial_state: AdditiveState,
    tokens: Tokens,
    cotangents: tuple[Array, AdditiveState],
    bars: tuple[Operands, AdditiveState],
) -> tuple[Operands, AdditiveState, tuple[Array, AdditiveState]]:
    """Gradients of the arguments of `slopes`, of those of what it returns: for kernels that have no such pass."""
    _, pull = jax.vjp(lambda x, state, bar: slopes(x, state, tokens, bar), operands, initial_state, cotangents)
    return pull(bars)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(operands: Operands, initial_state: AdditiveState, tokens: Tokens, chunk: int) -> tuple[Array, AdditiveState]:
    v, dtype = operands[2], initial_state.total.dtype

    def step(i: Array, carry: tuple[AdditiveState, Array]) -> tuple[AdditiveState, Array]:
        state, out = carry
        o, state = _forward(_chunk(operands, i, chunk, dtype), _flags(tokens, i, chunk), state)
        return state, _write(out, o, i, chunk)

    out = jnp.zeros(v.shape, jnp.result_type(*operands[:3]))
    final, out = lax.fori_loop(0, v.shape[1] // chunk, step, (initial_state, out))
    return mapped_alike((out, final), (operands, initial_state, tokens))


def _scan_forward(operands: Operands, initial_state: AdditiveState, tokens: Tokens, chunk: int) -> Any:
    v, dtype = operands[2], initial_state.total.dtype
    count = v.shape[1] // chunk

    def step(i: Array, carry: Any) -> Any:
        state, out, entered = carry
        entered = jax.tree.map(lambda xs, x: lax.dynamic_update_index_in_dim(xs, x, i, 0), entered, state)
        o, state = _forward(_chunk(operands, i, chunk, dtype), _flags(tokens, i, chunk), state)
        return state, _write(out, o, i, chunk), entered

    out = jnp.zeros(v.shape, jnp.result_type(*operands[:3]))
    entered = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), initial_state)
    final, out, entered = lax.fori_loop(0, count, step, (initial_state, out, entered))
    out, final = mapped_alike((out, final), (operands, initial_state, tokens))
    return (out, final), (operands, initial_state, tokens, entered, final)


def _scan_backward(chunk: int, residuals: Any, cotangents: tuple[Array, AdditiveState]) -> Any:
    operands, initial_state, tokens, entered, final = residuals
    do, final_bar = cotangents
    dtype = initial_state.total.dtype
    count = do.shape[1] // chunk

    def step(i: Array, carry: Any) -> Any:
        total_bar, state_bar, gradients = carry
        i = count - 1 - i
        state = jax.tree.map(lambda xs: lax.dynamic_index_in_dim(xs, i, 0, keepdims=False), entered)
        chunk_bar, total_bar, state_bar = _backward(
            _chunk(operands, i, chunk, dtype),
            _flags(tokens, i, chunk),
            state,
            _part(do, i, chunk, dtype),
            total_bar,
            state_bar,
        )
        gradients = jax.tree.map(lambda out, x: _write(out, x, i, chunk), gradients, tuple(chunk_bar))
        return total_bar, state_bar, gradients

    q, logits, *others = jax.tree.map(jnp.zeros_like, operands)
    # What reaches a logit through the final state and through its maximum may cancel: rounded only after the sum.
    zeros = (q, logits.astype(dtype), *others)
    total_bar, state_bar, gradients = lax.fori_loop(0, count, step, (final_bar.total, final_bar.state, zeros))
    logits_bar, maximum_bar = _through_maximum(operands[1], gradients[1], initial_state, tokens, final, final_bar)
    maximum_bar += unit(initial_state, total_bar, state_bar)
    gradients = (gradients[0], logits_bar.astype(logits.dtype), *gradients[2:])
    initial_bar = AdditiveState(maximum_bar, total_bar, state_bar)
    return gradients, as_it_was(tokens, final, final_bar, initial_bar), None


_scan.defvjp(_scan_forward, _scan_backward)


def _forward(chunk: Chunk, tokens: Tokens, state: AdditiveState) -> tuple[Array, AdditiveState]:
    """Outputs of a chunk and the state that leaves. No bit of what is computed for a token depends on a later one."""
    sees = sight(tokens.keep, chunk.v.shape[2])
    r = relative(chunk, sees, state)
    quick = partial(chunk_output, sees=sees)

    def exact_elsewhere(chunk: Chunk, state: AdditiveState, r: Relative) -> tuple[Array, AdditiveState]:
        (o, after), exact = quick(chunk, state=state, r=r), exact_chunk(chunk, tokens.keep, state, block=BLOCK)
        fits = comfortable(r, None).all(axis=-1)[..., None]  # (B, H, C, 1), true at the end where padding follows
        ends = fits[:, :, -1], fits[:, :, -1], fits[:, :, -1:]
        return jnp.where(fits, o, exact[0]), AdditiveState(*map(jnp.where, ends, after, exact[1]))

    return lax.cond(
        jnp.all(comfortable(r, tokens.real)),
        lambda chunk, state, r: quick(chunk, state=state, r=r),
        exact_elsewhere,
        chunk,
        state,
        r,
    )


def _backward(
    chunk: Chunk, tokens: Tokens, state: AdditiveState, do: Array, total_bar: Array, state_bar: Array
) -> tuple[Chunk, Array, Array]:
    sees = sight(tokens.keep, chunk.v.shape[2])
    r = relative(chunk, sees, state)
    return lax.cond(
        jnp.all(comfortable(r, tokens.real)),
        lambda chunk, state, r, *bars: chunk_gradient(chunk, sees, state, r, *bars),
        lambda chunk, state, r, *bars: exact_gradient(chunk, tokens.keep, state, *bars, block=BLOCK),
        chunk,
        state,
        r,
        do,
        total_bar,
        state_bar,
    )


def share_of_maximum(
    logits: Array, initial_state: AdditiveState, tokens: Tokens, final: AdditiveState, bar: AdditiveState
) -> tuple[Array, Array]:
    """What reaches each logit that attains the final maximum through it, and whether the initial maximum does.

    The loop holds maxima fixed. The final one is the unit of final total and state, and an output by itself; its
    gradient belongs to whatever attains it, and vanishes where the final state is used as a state or not at all.

    Returns:
        (B, H, K) each.
    """
    total_bar = jnp.where(final.maximum > -jnp.inf, bar.maximum - unit(final, bar.total, bar.state), 0)
    whole = jnp.ones(1, bool) if tokens.keep is None else tokens.keep.all(axis=1)
    from_start = whole[:, None, None] & (initial_state.maximum == final.maximum)

    def shared(total_bar: Array) -> Array:
        return total_bar / jnp.maximum(_attains(logits, tokens, final).sum(axis=1) + from_start, 1)

    return lax.cond(jnp.any(total_bar != 0), shared, lambda total_bar: total_bar, total_bar), from_start


def as_it_was(tokens: Tokens, final: AdditiveState, final_bar: AdditiveState, found: AdditiveState) -> AdditiveState:
    """Gradient of the initial state; where the row has nothing for a channel, the final state is the initial one."""
    nothing = final.maximum == -jnp.inf
    if tokens.keep is not None:
        nothing &= tokens.keep.all(axis=1)[:, None, None]
    return jax.tree.map(lambda bar, x: jnp.where(per_channel(nothing, x), bar, x), final_bar, found)


def _through_maximum(
    logits: Array,
    logits_bar: Array,
    initial_state: AdditiveState,
    tokens: Tokens,
    final: AdditiveState,
    bar: AdditiveState,
) -> tuple[Array, Array]:
    """Add what reaches the logits, and the initial maximum, through the final maximum."""
    share, from_start = share_of_maximum(logits, initial_state, tokens, final, bar)

    def spread(logits_bar: Array) -> Array:
        return logits_bar + jnp.where(_attains(logits, tokens, final), share[:, None], 0).astype(logits_bar.dtype)

    spread_over = lax.cond(jnp.any(share != 0), spread, lambda logits_bar: logits_bar, logits_bar)
    return spread_over, jnp.where(from_start, share, 0)


def _attains(logits: Array, tokens: Tokens, final: AdditiveState) -> Array:
    """(B, L, H, K), true at the tokens of the last run whose logit is the final maximum."""
    attains = logits == final.maximum[:, None]
    for flag in (None if tokens.keep is None else _of_last_run(tokens.keep), tokens.real):
        attains = attains if flag is None else attains & flag[..., None, None]
    return attains


def unit(state: AdditiveState, total_bar: Array, state_bar: Array) -> Array:
    """Gradient with respect to the maximum of a state whose total and inner state are in units of exp(-maximum)."""
    factors = state.state.shape[-2] // state.total.shape[-1]
    return state.total * total_bar + add((state.state * state_bar).sum(axis=-1), factors)


def _of_last_run(keep: Array) -> Array:
    """(B, L), true at the tokens of the last run."""
    run = jnp.cumsum(~keep, axis=1)
    return run == run[:, -1:]


def _part(x: Array, i: Array, chunk: int, dtype: Any) -> Array:
    """Chunk i of an array (B, L, H, ...), as (B, H, C, ...) in the precision of the state."""
    return lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1).swapaxes(1, 2).astype(dtype)


def _chunk(operands: Operands, i: Array, chunk: int, dtype: Any) -> Chunk:
    return Chunk(*jax.tree.map(lambda x: _part(x, i, chunk, dtype), operands))


def _flags(tokens: Tokens, i: Array, chunk: int) -> Tokens:
    """Flags of chunk i: keep (B, C) and real (B, 1, C, 1)."""
    keep, real = (None if x is None else lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in tokens)
    return Tokens(keep, None if real is None else real[:, None, :, None])


def _write(out: Array, x: Array, i: Array, chunk: int) -> Array:
    """Put (B, H, C, ...) into (B, L, H, ...) as its chunk i."""
    return lax.dynamic_update_slice_in_dim(out, x.swapaxes(1, 2).astype(out.dtype), i * chunk, axis=1)


def _padded(x: Any, missing: int, value: float | bool) -> Any:
    """A tensor (B, L, ...) with more tokens at the end; None stays None."""
    if x is None:
        return x
    return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2), constant_values=value)
