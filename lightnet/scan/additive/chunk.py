"""LightNet on one chunk of tokens, for causal use: no gates, one reference per channel.

The weight of token j at token t, exp(a_j - z_t) with z_t = log sum_{j<=t} exp(a_j), is a function of j times a function
of t. Relative to any r of its channel it is k_j / n_t with

    k_j = exp(a_j - r),    n_t = exp(m - r) d + sum_{j<=t} k_j,

where the state (m, d, S) that enters has the running maximum m, the sum d of exponentials and the sum S of keys times
values, both relative to m. So a chunk is plain causal linear attention with queries q_t / n_t and keys k_j:

    o_t = (q_t / n_t) (exp(m - r) S + sum_{j<=t} k_j v_j^T).

r is the maximum of the entering state, or where that is empty the first logit of the chunk. So it depends on no later
token, and neither does a bit of o_t: keys that a token does not see are multiplied by 0. But logits far above r would
overflow, and those far below lose their keys to underflow. `comfortable` says where that does not matter; at the other
tokens `exact_chunk` takes each token's own running maximum for r.

A key factor w_j multiplies k_j behind the normalisation: F factors give F K key channels that share K normalisers.

All functions take (B, H, C, ...) arrays in the precision of the state and call nothing but elementary operations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.typing import Array

PRECISION = lax.Precision.HIGHEST


class AdditiveState(NamedTuple):
    """What LightNet keeps of the tokens behind it, each per head and key channel.

    Attributes:
        maximum: (B, H, K), the largest key logit; -inf before the first token.
        total: (B, H, K), sum of exp(key logit - maximum).
        state: (B, H, F*K, V), sum of exp(key logit - maximum) times key factor times value.
    """

    maximum: Array
    total: Array
    state: Array


class AdditiveSummary(NamedTuple):
    """Of a stretch: the state of its last run when it begins empty, and (B,) whether a run began inside."""

    last: AdditiveState
    restarts: Array


class Chunk(NamedTuple):
    """Operands of one chunk: q (B, H, C, F*K), logits (B, H, C, K), v (B, H, C, V), factor (B|1, H|1, C, F, K) or None.

    Logits are -inf at tokens that do not exist.
    """

    q: Array
    logits: Array
    v: Array
    factor: Array | None


class Sight(NamedTuple):
    """Which tokens of a chunk count for which.

    Attributes:
        pairs: (B|1, 1, C, C), true where the token of the column counts for that of the row.
        entering: (B|1, 1, C, 1), true where the entering state counts.
        leaving: (B|1, 1, C, 1), true at tokens that count for the leaving state.
    """

    pairs: Array
    entering: Array
    leaving: Array


class Relative(NamedTuple):
    """A chunk relative to one reference per channel.

    Attributes:
        keys: (B, H, C, K), exp(logits - reference).
        normalisers: (B, H, C, K), at token t the sum of keys up to it, the entering state's included.
        decay: (B, H, K), of the entering state.
        rescale: (B, H, K), from the reference to the leaving maximum.
        maximum: (B, H, K), the leaving one.
    """

    keys: Array
    normalisers: Array
    decay: Array
    rescale: Array
    maximum: Array


def merge(one: AdditiveState, other: AdditiveState) -> AdditiveState:
    """The state behind two stretches of one run, in any order: associative and commutative.

    Example:
        >>> ones = jnp.ones((1, 1, 1))
        >>> both = merge(AdditiveState(ones, ones, ones[None]), AdditiveState(ones, 2 * ones, ones[None]))
        >>> both.maximum.item(), both.total.item(), both.state.item()
        (1.0, 3.0, 2.0)
    """
    maximum = jnp.maximum(one.maximum, other.maximum)
    left, right = (jnp.exp(s.maximum - finite(maximum)) for s in (one, other))
    factors = one.state.shape[-2] // maximum.shape[-1]
    scale_left, scale_right = (repeat(x, factors)[..., None] for x in (left, right))
    return AdditiveState(
        maximum, left * one.total + right * other.total, scale_left * one.state + scale_right * other.state
    )


def combine(earlier: AdditiveSummary, later: AdditiveSummary) -> AdditiveSummary:
    """The summary of two stretches, one behind the other; associative."""
    return AdditiveSummary(enter(later, earlier.last), earlier.restarts | later.restarts)


def enter(summary: AdditiveSummary, state: AdditiveState) -> AdditiveState:
    """The state behind a stretch that `state` enters; as it was where the stretch has nothing."""
    nothing = summary.last.maximum == -jnp.inf

    def choose(alone: Array, before: Array, merged: Array) -> Array:
        merged = jnp.where(per_channel(nothing, merged), before, merged)
        return jnp.where(summary.restarts.reshape((-1,) + (1,) * (alone.ndim - 1)), alone, merged)

    return jax.tree.map(choose, summary.last, state, merge(state, summary.last))


def sight(keep: Array | None, length: int) -> Sight:
    """What begins of runs inside a chunk cut off.

    Args:
        keep: (B, C), false where a run begins; None if none does.
        length: C.
    """
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if keep is None:
        everywhere = jnp.ones((1, 1, length, 1), bool)
        return Sight(causal, everywhere, everywhere)
    run = jnp.cumsum(~keep, axis=1)[:, None, :, None]
    return Sight(causal & (run == run.swapaxes(2, 3)), run == 0, run == run[:, :, -1:])


def relative(chunk: Chunk, sees: Sight, state: AdditiveState) -> Relative:
    """The chunk relative to what its first token sees: the maximum of the state that enters, or its own logit."""
    entering = jnp.where(sees.entering[:, :, 0], state.maximum, -jnp.inf)
    # A sum over tokens, though of one alone: XLA on CPU would compute all keys anew wherever a mere slice enters them.
    first = jnp.where(jnp.arange(chunk.logits.shape[2])[:, None] == 0, finite(chunk.logits), 0).sum(axis=2)
    reference = jnp.where(entering > -jnp.inf, entering, first)
    last = jnp.where(sees.leaving, chunk.logits, -jnp.inf).max(axis=2)
    maximum = jnp.maximum(last, jnp.where(sees.entering[:, :, -1], state.maximum, -jnp.inf))
    # A key that is cut here is beyond what is comfortable, and finite where it is not seen.
    largest = 1 - 0.7 * jnp.log(jnp.finfo(chunk.logits.dtype).tiny)
    keys = jnp.exp(jnp.minimum(chunk.logits - reference[:, :, None], largest))
    decay = jnp.exp(entering - reference)
    normalisers = jnp.where(sees.entering, (decay * state.total)[:, :, None], 0)
    normalisers += dot("...tj,...jk->...tk", _weights(sees, keys), keys)
    return Relative(keys, normalisers, decay, jnp.exp(reference - finite(maximum)), maximum)


def comfortable(r: Relative, real: Array | None) -> Array:
    """Where (B, H, C, K) no key is lost to overflow, or to underflow that matters; real (B, 1, C, 1) or None."""
    least = jnp.finfo(r.keys.dtype).tiny ** 0.7
    fits = (r.normalisers >= least) & (r.normalisers <= 1 / least)
    return fits if real is None else fits | ~real


def chunk_output(chunk: Chunk, sees: Sight, state: AdditiveState, r: Relative) -> tuple[Array, AdditiveState]:
    """Outputs (B, H, C, V) and the state that leaves, where `comfortable`."""
    q, k, decay, rescale = _scaled(chunk, r)
    scores = jnp.where(sees.pairs, dot("...tk,...jk->...tj", q, k), 0)
    entering = decay[..., None] * state.state
    o = dot("...tj,...jv->...tv", scores, chunk.v)
    o += jnp.where(sees.entering, dot("...tk,...kv->...tv", q, entering), 0)
    stays, leaves = sees.entering[:, :, -1], jnp.where(sees.leaving, 1, 0)
    total = jnp.where(stays, r.decay * state.total, 0) + (leaves * r.keys).sum(axis=2)
    inner = jnp.where(stays[..., None], entering, 0) + dot("...jk,...jv->...kv", leaves * k, chunk.v)
    return o, AdditiveState(r.maximum, r.rescale * total, rescale[..., None] * inner)


def chunk_gradient(
    chunk: Chunk, sees: Sight, state: AdditiveState, r: Relative, do: Array, total_bar: Array, state_bar: Array
) -> tuple[Chunk, Array, Array]:
    """Gradients with respect to the operands, the entering total and the entering state, where `comfortable`.

    All maxima are held fixed: what depends on them does so as a choice of unit only.

    Args:
        chunk: the operands.
        sees: which tokens count for which.
        state: that enters.
        r: from `relative`.
        do: gradient of the outputs, (B, H, C, V).
        total_bar: gradient of the leaving total, (B, H, K).
        state_bar: gradient of the leaving state, (B, H, F*K, V).
    """
    q, k, decay, rescale = _scaled(chunk, r)
    factors = q.shape[-1] // r.keys.shape[-1]
    normalisers = _nonzero(r.normalisers)
    total_bar, state_bar = r.rescale * total_bar, rescale[..., None] * state_bar
    stays, leaves = sees.entering[:, :, -1], jnp.where(sees.leaving, 1, 0)
    scores = jnp.where(sees.pairs, dot("...tk,...jk->...tj", q, k), 0)
    scores_bar = jnp.where(sees.pairs, dot("...tv,...jv->...tj", do, chunk.v), 0)
    do_entering = jnp.where(sees.entering, do, 0)
    q_bar = dot("...tj,...jk->...tk", scores_bar, k)
    q_bar += dot("...tv,...kv->...tk", do_entering, decay[..., None] * state.state)
    q_bar = q_bar / repeat(normalisers, factors)
    n_bar = -add(chunk.q * q_bar, factors) / normalisers
    k_bar = dot("...tj,...tk->...jk", scores_bar, q) + leaves * dot("...jv,...kv->...jk", chunk.v, state_bar)
    v_bar = dot("...tj,...tv->...jv", scores, do) + leaves * dot("...jk,...kv->...jv", k, state_bar)
    keys_bar = (
        add(k_bar if chunk.factor is None else k_bar * _flat(chunk.factor), factors) + leaves * total_bar[:, :, None]
    )
    keys_bar += dot("...tj,...tk->...jk", _weights(sees, r.keys), n_bar)
    factor_bar = (
        None if chunk.factor is None else _like(_unflat(k_bar * repeat(r.keys, factors), factors), chunk.factor)
    )
    total_in = r.decay * (jnp.where(stays, total_bar, 0) + jnp.where(sees.entering, n_bar, 0).sum(axis=2))
    state_in = jnp.where(stays[..., None], state_bar, 0) + dot("...tk,...tv->...kv", q, do_entering)
    return Chunk(q_bar, r.keys * keys_bar, v_bar, factor_bar), total_in, decay[..., None] * state_in


def exact_chunk(
    chunk: Chunk, keep: Array | None, state: AdditiveState, *, block: int = 8
) -> tuple[Array, AdditiveState]:
    """`chunk_output` for any logits: blocks of a few tokens, every exponent of a token relative to its own maximum."""

    def over_blocks(x: Array, axis: int) -> Array:
        x = x.reshape((*x.shape[:axis], -1, block, *x.shape[axis + 1 :]))
        return jnp.moveaxis(x, axis, 0)

    def step(state: AdditiveState, xs: tuple[Chunk, Array | None]) -> tuple[AdditiveState, Array]:
        part, kept = xs
        o, state = _exact_block(part, sight(kept, block), state)
        return state, o

    blocks = jax.tree.map(lambda x: over_blocks(x, 2), chunk), None if keep is None else over_blocks(keep, 1)
    final, o = lax.scan(step, state, blocks)
    return jnp.moveaxis(o, 0, 2).reshape(chunk.v.shape), final


def exact_gradient(
    chunk: Chunk,
    keep: Array | None,
    state: AdditiveState,
    do: Array,
    total_bar: Array,
    state_bar: Array,
    *,
    block: int = 8,
) -> tuple[Chunk, Array, Array]:
    """`chunk_gradient` for any logits."""

    def outputs(chunk: Chunk, total: Array, inner: Array) -> tuple[Array, Array, Array]:
        o, final = exact_chunk(chunk, keep, AdditiveState(state.maximum, total, inner), block=block)
        return o, final.total, final.state

    return jax.vjp(outputs, chunk, state.total, state.state)[1]((do, total_bar, state_bar))


def finite(maximum: Array) -> Array:
    """A reference in the place of a maximum over nothing."""
    return jnp.where(maximum == -jnp.inf, 0, maximum)


def repeat(x: Array, factors: int) -> Array:
    """(..., K) for each of the factors: (..., F*K)."""
    return x if factors == 1 else jnp.tile(x, factors)


def per_channel(x: Array, like: Array) -> Array:
    """(B, H, K), for a part of a state: as it is, or (B, H, F*K, 1)."""
    return x if like.ndim == x.ndim else repeat(x, like.shape[-2] // x.shape[-1])[..., None]


def add(x: Array, factors: int) -> Array:
    """(..., F*K) summed over the factors: (..., K)."""
    return x if factors == 1 else _unflat(x, factors).sum(axis=-2)


def dot(subscripts: str, x: Array, y: Array) -> Array:
    """An einsum at full precision on every platform."""
    return jnp.einsum(subscripts, x, y, precision=PRECISION)


def _scaled(chunk: Chunk, r: Relative) -> tuple[Array, Array, Array, Array]:
    """Queries over normalisers, keys times factors, decay and rescale for all F*K channels."""
    factors = chunk.q.shape[-1] // r.keys.shape[-1]
    q = chunk.q / repeat(_nonzero(r.normalisers), factors)
    k = r.keys if chunk.factor is None else repeat(r.keys, factors) * _flat(chunk.factor)
    return q, k, repeat(r.decay, factors), repeat(r.rescale, factors)


def _exact_block(chunk: Chunk, sees: Sight, state: AdditiveState) -> tuple[Array, AdditiveState]:
    """(B, H, C, C, K) exponents, none above 0."""
    logits = lax.stop_gradient(chunk.logits)
    pairs = sees.pairs[..., None]
    entering = jnp.where(sees.entering, state.maximum[:, :, None], -jnp.inf)
    maximum = jnp.maximum(jnp.where(pairs, logits[:, :, None], -jnp.inf).max(axis=3), entering)
    reference = finite(maximum)
    keys = jnp.exp(jnp.where(pairs, chunk.logits[:, :, None] - reference[:, :, :, None], -jnp.inf))
    decay = jnp.exp(entering - reference)
    total = keys.sum(axis=3) + decay * state.total[:, :, None]
    factors = chunk.q.shape[-1] // chunk.logits.shape[-1]
    q = chunk.q / repeat(_nonzero(total), factors)
    if chunk.factor is None:
        weights = q[:, :, :, None] * keys
        last = keys[:, :, -1]
    else:
        factor = jnp.broadcast_to(chunk.factor, q.shape[:2] + chunk.factor.shape[2:])
        weights = dot("...tfk,...jfk->...tjk", _unflat(q, factors), factor) * keys
        last = repeat(keys[:, :, -1], factors) * _flat(factor)
    o = dot("...tj,...jv->...tv", weights.sum(axis=-1), chunk.v)
    o += dot("...tk,...kv->...tv", q * repeat(decay, factors), state.state)
    inner = repeat(decay[:, :, -1], factors)[..., None] * state.state + dot("...jk,...jv->...kv", last, chunk.v)
    return o, AdditiveState(maximum[:, :, -1], total[:, :, -1], inner)


def _weights(sees: Sight, keys: Array) -> Array:
    """Pairs as numbers (B, H, C, C): multiplying by them adds up the keys that each token sees."""
    return jnp.broadcast_to(sees.pairs, (*keys.shape[:3], keys.shape[2])).astype(keys.dtype)


def _like(bar: Array, factor: Array) -> Array:
    """Summed over batch and heads where the factor is shared."""
    for axis in (0, 1):
        bar = bar if bar.shape[axis] == factor.shape[axis] else bar.sum(axis=axis, keepdims=True)
    return bar


def _nonzero(normalisers: Array) -> Array:
    """Before the first token there is nothing to divide."""
    return jnp.where(normalisers > 0, normalisers, 1)


def _flat(factor: Array) -> Array:
    return factor.reshape((*factor.shape[:-2], -1))


def _unflat(x: Array, factors: int) -> Array:
    return x.reshape((*x.shape[:-1], factors, -1))
