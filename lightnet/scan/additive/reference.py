"""LightNet token by token, and with all weights written out: the definitions that everything else is tested against."""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from lightnet.scan.additive.chunk import AdditiveState, dot, finite, repeat
from lightnet.scan.recurrence import Tokens, state_dtype
from lightnet.typing import Array

Operands: TypeAlias = tuple[Array, Array, Array, Array | None]


def additive_update(
    q: Array, logits: Array, v: Array, factor: Array | None, state: AdditiveState
) -> tuple[Array, AdditiveState]:
    """One token, with the running maximum m, the sum d and the unnormalised state S:

        m' = max(m, a),  d' = exp(m - m') d + exp(a - m'),  S' = exp(m - m') S + (w exp(a - m')) v^T,  o = (q / d') S'.

    A logit of -inf changes nothing: where m is -inf too, exp(m - m') is exp(0), and m' depends on m alone.

    Args:
        q: (B, H, F*K).
        logits: a (B, H, K).
        v: (B, H, V).
        factor: w (B or 1, H or 1, F, K), or None for 1.
        state: (m, d, S).

    Returns:
        o (B, H, V), 0 while every logit has been -inf, and the state.
    """
    factors = q.shape[-1] // logits.shape[-1]
    maximum = jnp.maximum(state.maximum, logits)
    nothing = maximum == -jnp.inf
    maximum = jnp.where(nothing, state.maximum, maximum)
    decay = jnp.where(nothing, 1, jnp.exp(state.maximum - finite(maximum)))
    key = jnp.exp(logits - finite(maximum))
    total = decay * state.total + key
    keys = repeat(key, factors)
    if factor is not None:
        keys = keys * factor.reshape((*factor.shape[:2], -1))
    inner = repeat(decay, factors)[..., None] * state.state + keys[..., None] * v[..., None, :]
    seen = repeat(total, factors) > 0
    normalised = jnp.where(seen, q / repeat(jnp.where(total > 0, total, 1), factors), 0)
    return dot("bhk,bhkv->bhv", normalised, inner), AdditiveState(maximum, total, inner)


def additive_reference(operands: Operands, initial_state: AdditiveState, tokens: Tokens) -> tuple[Array, AdditiveState]:
    """One `lax.scan` over time.

    Args:
        operands: q (B, L, H, F*K), key logits (B, L, H, K), v (B, L, H, V), key factor (B|1, L, H|1, F, K) or None.
        initial_state: in its precision.
        tokens: which tokens begin a run, and which are real.

    Returns:
        o (B, L, H, V) in the precision of the state, and the last state.
    """
    empty = AdditiveState(*(jnp.full_like(x, value) for x, value in zip(initial_state, (-jnp.inf, 0, 0), strict=True)))

    def choose(flag: Array, yes: AdditiveState, no: AdditiveState) -> AdditiveState:
        return jax.tree.map(lambda x, y: jnp.where(flag.reshape((-1,) + (1,) * (x.ndim - 1)), x, y), yes, no)

    def step(state: AdditiveState, token: tuple[Operands, Tokens]) -> tuple[AdditiveState, Array]:
        now, flags = token
        before = state if flags.keep is None else choose(flags.keep, state, empty)
        o, after = additive_update(*now, before)
        return after if flags.real is None else choose(flags.real, after, before), o

    over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), (operands, tokens))
    dtype = initial_state.total.dtype
    over_time = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(dtype), over_time)
    final, o = jax.lax.scan(step, initial_state, over_time)
    return o.swapaxes(0, 1), final


def global_reference(
    operands: tuple[Array, Array, Array, Array | None, Array | None],
    initial_state: None,
    tokens: Tokens,
    *,
    num_segments: int,
) -> Array:
    """Every weight written out: o_i = sum_j (q_i . w_j exp(a_j - z)) v_j, z = log sum_j exp(a_j), j in the run of i.

    Args:
        operands: as for `additive_reference`, and the number (B, L) of each token's run, or None where there is one.
        initial_state: there is none.
        tokens: which are real.
        num_segments: runs of that number and beyond do not count.

    Returns:
        o (B, L, H, V) in the precision of the sums.
    """
    q, logits, v, factor, runs = operands
    dtype = state_dtype(q, logits, v, factor)
    q, logits, v = (x.astype(dtype) for x in (q, logits, v))
    batch, length, heads, width = logits.shape
    factor = jnp.ones((1, 1, 1, 1, 1), dtype) if factor is None else factor.astype(dtype)
    runs = jnp.zeros((batch, length), int) if runs is None else runs
    counts = (runs[:, :, None] == runs[:, None, :]) & (runs < num_segments)[:, None, :]
    if tokens.real is not None:
        counts &= tokens.real[:, None, :]
    logits = jnp.where(counts[..., None, None], logits[:, None], -jnp.inf)
    weights = jnp.exp(logits - finite(logits.max(axis=2, keepdims=True)))
    total = weights.sum(axis=2, keepdims=True)
    keys = (weights / jnp.where(total > 0, total, 1))[..., None, :] * factor[:, None]
    scores = (q.reshape(batch, length, 1, heads, -1, width) * keys).sum(axis=(-2, -1))
    return dot("bijh,bjhv->bihv", scores, v)
