"""LightNet without an order: keys normalised over each segment, and attention within segments as matrix products.

With normalised keys k_j the output is o_i = sum_j (q_i . k_j) v_j over the j of i's segment, linear in each of the
three. So one function serves forward and backward: the gradient of each is such a sum over the other two and the
gradient of the output.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.additive.chunk import AdditiveState, add, dot, finite, repeat
from lightnet.scan.recurrence import Tokens, state_dtype
from lightnet.typing import Array

# q, key logits, v, key factor, and the number of each token's run.
Operands: TypeAlias = tuple[Array, Array, Array, Array | None, Array | None]
CHUNK = 64  # tokens of the pairwise products within segments


def global_xla(
    operands: Operands,
    initial_state: None,
    tokens: Tokens,
    *,
    num_segments: int,
) -> Array:
    """See `global_reference`."""
    q, logits, v, factor, runs = _prepared(operands, tokens, num_segments)
    if runs is None:
        return _whole(q, logits, v, factor)
    keys = _times(_normalised(logits, runs, num_segments), factor)
    return _within_segments(q, keys, v, runs)


def global_split(operands: Operands, tokens: Tokens, axes: tuple[str, ...], *, num_segments: int) -> Array:
    """The same with the sequence split over axes of a mesh, from inside `jax.shard_map`.

    A run is contiguous, so only the first and the last run of a device's stretch have tokens elsewhere.
    """
    q, logits, v, factor, runs = _prepared(operands, tokens, num_segments)
    if runs is None:
        maximum = finite(lax.pmax(lax.stop_gradient(logits).max(axis=1, keepdims=True), axes))
        keys = jnp.exp(logits - maximum)
        total = lax.psum(keys.sum(axis=1, keepdims=True), axes)
        keys = _times(keys / jnp.where(total > 0, total, 1), factor)
        return dot("blhk,bhkv->blhv", q, lax.psum(dot("blhk,blhv->bhkv", keys, v), axes))
    keys = _times(_normalised(logits, runs, num_segments, axes), factor)
    first, last = runs[:, 0], runs[:, -1]
    of_first, of_last = ((runs == edge[:, None])[..., None, None] for edge in (first, last))
    sums = (dot("blhk,blhv->bhkv", jnp.where(flag, keys, 0), v) for flag in (of_first, of_last))
    first_run, last_run, first_sum, last_sum = lax.all_gather((first, last, *sums), axes)
    place = jnp.arange(first_run.shape[0])[:, None]
    here = lax.axis_index(axes)
    earlier = ((place < here) & (last_run == first[None]))[..., None, None, None]
    later = ((place > here) & (first_run == last[None]))[..., None, None, None]
    o = _within_segments(q, keys, v, runs)
    o += dot("blhk,bhkv->blhv", jnp.where(of_first, q, 0), jnp.where(earlier, last_sum, 0).sum(axis=0))
    return o + dot("blhk,bhkv->blhv", jnp.where(of_last, q, 0), jnp.where(later, first_sum, 0).sum(axis=0))


def _prepared(operands: Operands, tokens: Tokens, num_segments: int) -> Operands:
    """In the precision of the sums, with logits of -inf where a token does not count."""
    q, logits, v, factor, runs = operands
    dtype = state_dtype(q, logits, v, factor)
    q, logits, v = (x.astype(dtype) for x in (q, logits, v))
    if tokens.real is not None:
        logits = jnp.where(tokens.real[..., None, None], logits, -jnp.inf)
    if runs is not None:
        logits = jnp.where((runs < num_segments)[..., None, None], logits, -jnp.inf)
    return q, logits, v, None if factor is None else factor.astype(dtype), runs


def absorb(state: AdditiveState, logits: Array, plus_product: Callable[[Array, Array], Array]) -> AdditiveState:
    """The state of one head behind more tokens, in any order: a step of a softmax over the sequence.

    Args:
        state: maximum (K,), total (K,) and state (K, V) of the tokens so far.
        logits: (K, C), of C more tokens.
        plus_product: (sums (K, V), keys (K, C)) -> the sums and the product of the keys and the tokens' values.

    Example:
        >>> empty = AdditiveState(jnp.full(1, -jnp.inf), jnp.zeros(1), jnp.zeros((1, 1)))
        >>> v = jnp.array([[1.0], [3.0]])
        >>> behind = absorb(empty, jnp.zeros((1, 2)), lambda sums, keys: sums + keys @ v)
        >>> behind.total.item(), behind.state.item()
        (2.0, 4.0)
    """
    maximum = jnp.maximum(state.maximum, logits.max(axis=1))
    reference = finite(maximum)
    keys = jnp.exp(logits - lax.broadcast_in_dim(reference, logits.shape, [0]))
    decay = jnp.exp(state.maximum - reference)
    stays = lax.broadcast_in_dim(decay, state.state.shape, [0]) * state.state
    return AdditiveState(maximum, decay * state.total + keys.sum(axis=1), plus_product(stays, keys))


def together(parts: AdditiveState) -> AdditiveState:
    """The state of many stretches, which lie side by side in the third axis.

    Example:
        >>> two = AdditiveState(jnp.zeros((1, 1, 2, 1)), jnp.ones((1, 1, 2, 1)), jnp.ones((1, 1, 2, 1, 1)))
        >>> together(two).total.item()
        2.0
    """
    maximum = parts.maximum.max(axis=2)
    weights = jnp.exp(parts.maximum - finite(maximum)[:, :, None])
    total = (weights * parts.total).sum(axis=2)
    return AdditiveState(maximum, total, (weights[..., None] * parts.state).sum(axis=2))


def second_order(
    operands: Any, tokens: Tokens, do: Array, bars: Any, *, runs: Array | None = None, num_segments: int = 1
) -> tuple[Any, Array]:
    """Derivatives of the gradient of `global_xla`, for kernels: of operands, three or with a factor, and of `do`."""

    def gradient(operands: Any, do: Array) -> Any:
        function: Any = lambda *x: global_xla(  # noqa: E731
            (*x, *[None] * (4 - len(x)), runs), None, tokens, num_segments=num_segments
        )
        o, pull = jax.vjp(function, *operands)
        return pull(do.astype(o.dtype))

    return jax.vjp(gradient, operands, do)[1](bars)


@jax.custom_vjp
def _whole(q: Array, logits: Array, v: Array, factor: Array | None) -> Array:
    """One segment: o = q S, with S = keys^T v over the sum of keys."""
    return dot("blhk,bhkv->blhv", q, _state(logits, v, factor)[0])


def _whole_forward(q: Array, logits: Array, v: Array, factor: Array | None) -> tuple[Array, tuple]:
    state, maximum, total = _state(logits, v, factor)
    return dot("blhk,bhkv->blhv", q, state), (q, logits, v, factor, state, maximum, total)


def _whole_backward(residuals: tuple, do: Array) -> tuple[Array, Array, Array, Array | None]:
    """The mean of the key's gradient under the key is sum_v S dS: no second pass over the tokens."""
    q, logits, v, factor, state, maximum, total = residuals
    keys = jnp.exp(logits - maximum) / total[:, None]
    factors = q.shape[-1] // keys.shape[-1]
    state_bar = dot("blhk,blhv->bhkv", q, do)
    keys_bar = dot("blhv,bhkv->blhk", v, state_bar)
    v_bar = dot("blhk,bhkv->blhv", _times(keys, factor), state_bar)
    mean = add((state * state_bar).sum(axis=-1), factors)
    through_factor = keys_bar if factor is None else keys_bar * factor.reshape((*factor.shape[:3], -1))
    logits_bar = keys * (add(through_factor, factors) - mean[:, None])
    factor_bar = None
    if factor is not None:
        by_factor = (keys_bar * repeat(keys, factors)).reshape((*keys.shape[:3], factors, -1))
        shared = tuple(i for i in (0, 2) if factor.shape[i] < by_factor.shape[i])
        factor_bar = by_factor.sum(axis=shared, keepdims=True)
    return dot("blhv,bhkv->blhk", do, state), logits_bar, v_bar, factor_bar


_whole.defvjp(_whole_forward, _whole_backward)


def _state(logits: Array, v: Array, factor: Array | None) -> tuple[Array, Array, Array]:
    """S (B, H, F*K, V), and the reference and sum of keys (B, 1, H, K) that normalised it."""
    maximum = finite(logits.max(axis=1, keepdims=True))
    keys = jnp.exp(logits - maximum)
    total = keys.sum(axis=1)
    total = jnp.where(total > 0, total, 1)
    keys = _times(keys, factor)
    state = dot("blhk,blhv->bhkv", keys, v) / repeat(total, keys.shape[-1] // total.shape[-1])[..., None]
    return state, maximum, total


def _times(keys: Array, factor: Array | None) -> Array:
    """(B, L, H, K) keys times (B|1, L, H|1, F, K) factors: (B, L, H, F*K)."""
    if factor is None:
        return keys
    return (keys[..., None, :] * factor).reshape((*keys.shape[:3], -1))


def _normalised(logits: Array, runs: Array, num_segments: int, axes: tuple[str, ...] = ()) -> Array:
    """Softmax over the tokens of each segment, on all devices along `axes`; 0 where no token has a finite logit."""
    # Sums over segments are products with a 0/1 matrix: the transpose is another product, that of a gather a scatter.
    member = (runs[..., None] == jnp.arange(num_segments)[None, None]).astype(logits.dtype)
    keys = jnp.exp(logits - _segment_maximum(lax.stop_gradient(logits), runs, num_segments, axes))
    total = dot("bls,blhk->bshk", member, keys)
    total = dot("bls,bshk->blhk", member, lax.psum(total, axes) if axes else total)
    return keys / jnp.where(total > 0, total, 1)


def _segment_maximum(logits: Array, runs: Array, num_segments: int, axes: tuple[str, ...]) -> Array:
    """The largest logit of each token's segment, at the token."""
    runs = jnp.minimum(runs, num_segments - 1)
    largest = jax.vmap(lambda x, run: jax.ops.segment_max(x, run, num_segments, indices_are_sorted=True))(logits, runs)
    largest = finite(lax.pmax(largest, axes) if axes else largest)
    return jax.vmap(lambda x, run: x[run])(largest, runs)


@jax.custom_vjp
def _within_segments(q: Array, k: Array, v: Array, runs: Array) -> Array:
    """o_i = sum_j (q_i . k_j) v_j over the tokens j of the segment of i.

    Chunk by chunk: pairs within a chunk by their scores, tokens before it by one state, tokens behind it by another.
    """
    length = v.shape[1]
    chunk = min(CHUNK, length)
    count = -(-length // chunk)
    q, k, v = (jnp.pad(x, ((0, 0), (0, -length % chunk), (0, 0), (0, 0))) for x in (q, k, v))
    runs = jnp.pad(runs, ((0, 0), (0, -length % chunk)))  # whichever: the keys and queries there are 0

    def part(x: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)

    def step(i: Array, carry: tuple[Array, Array, Array], *, later: bool) -> tuple[Array, Array, Array]:
        state, its_run, out = carry
        i = count - 1 - i if later else i
        q_i, k_i, v_i, run = part(q, i), part(k, i), part(v, i), part(runs, i)
        edge = run[:, 0 if later else -1]
        o = dot("blhk,bhkv->blhv", jnp.where((run == its_run[:, None])[..., None, None], q_i, 0), state)
        if not later:
            scores = dot("bihk,bjhk->bhij", q_i, k_i)
            scores = jnp.where((run[:, :, None] == run[:, None, :])[:, None], scores, 0)
            o += dot("bhij,bjhv->bihv", scores, v_i)
        added = dot("blhk,blhv->bhkv", jnp.where((run == edge[:, None])[..., None, None], k_i, 0), v_i)
        state = jnp.where((edge == its_run)[:, None, None, None], state, 0) + added
        return state, edge, lax.dynamic_update_slice_in_dim(out, part(out, i) + o, i * chunk, axis=1)

    nothing = jnp.zeros((v.shape[0], v.shape[2], k.shape[3], v.shape[3]), v.dtype)
    out = jnp.zeros_like(v)
    for later in (False, True):
        nowhere = jnp.full(v.shape[:1], -1, runs.dtype)
        _, _, out = lax.fori_loop(0, count, lambda i, c, later=later: step(i, c, later=later), (nothing, nowhere, out))
    return out[:, :length]


def _within_forward(q: Array, k: Array, v: Array, runs: Array) -> tuple[Array, tuple]:
    return _within_segments(q, k, v, runs), (q, k, v, runs)


def _within_backward(residuals: tuple, do: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, runs = residuals
    q_bar, k_bar = _within_segments(do, v, k, runs), _within_segments(v, do, q, runs)
    return q_bar, k_bar, _within_segments(k, q, do, runs), None


_within_segments.defvjp(_within_forward, _within_backward)
