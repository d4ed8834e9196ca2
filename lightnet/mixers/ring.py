"""Softmax attention with the sequence split over a mesh: ring self-attention (Li et al. 2021, arXiv 2105.13120).

Each device keeps the queries of its stretch, while keys and values go round: at every turn each device attends to the
stretch that is with it and hands it on to its neighbour. The paper keeps the scores of the local queries with all keys,
L^2 / n numbers a head. Here sums are kept relative to the largest score so far, as in blockwise attention (Liu et al.
2023, arXiv 2310.01889), and the gradient goes round once more with scores computed again, so that the memory of a
device grows as L / n and not as L^2 / n.

Written here because `jax.nn.dot_product_attention` has no ring, and no other of this project's dependencies has
attention that is split over the sequence.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.placement import Placement, placement
from lightnet.scan.recurrence import Axes, Recurrence, Tokens, only_real, state_dtype
from lightnet.scan.sharded import sharded
from lightnet.typing import Array

CHUNK = 512  # keys that queries are multiplied with at once


class Stretch(NamedTuple):
    """Keys and values that go round, in chunks of C.

    Attributes:
        keys: (N, B, C, H, M).
        values: (N, B, C, H, V).
        run: (N, B, C), number of the run that a token belongs to.
        real: (N, B, C), false at masked tokens and behind the last.
    """

    keys: Array
    values: Array
    run: Array
    real: Array


class Sums(NamedTuple):
    """Of a softmax over the keys so far: largest score and sum of weights (B, H, L), weighted values (B, L, H, V)."""

    maximum: Array
    total: Array
    values: Array


def ring_attention(
    q: Array,
    k: Array,
    v: Array,
    run: Array | None = None,
    real: Array | None = None,
    *,
    axis: str | tuple[str, ...],
    causal: bool = False,
    scale: float = 1.0,
) -> Array:
    """Attention of the tokens of this device to those of all, from inside `jax.shard_map`.

    o_i = sum_j softmax_j(scale q_i . k_j) v_j over the visible j: real, of the run of i, and j <= i if causal.

    Args:
        q: (B, L, H, M), L tokens on this device.
        k: (B, L, H, M).
        v: (B, L, H, V).
        run: (B, L), from `lightnet.segments.run_index` of whole rows; None is one run.
        real: (B, L), false at masked tokens, whatever stands there; they read 0. None is all.
        axis: of the mesh, that the sequence is split over in the order of its devices.
        causal: whether tokens see only those before them and themselves.
        scale: of the scores.

    Returns:
        (B, L, H, V), in the precision of v.

    Example:
        >>> from jax.sharding import PartitionSpec as P
        >>> q = k = v = jnp.ones((1, 3, 2, 4))
        >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> f = partial(ring_attention, axis="sequence", causal=True)
        >>> with jax.set_mesh(mesh):
        ...     split = jax.shard_map(f, in_specs=P(None, "sequence"), out_specs=P(None, "sequence"), check_vma=False)
        ...     jax.jit(split)(q, k, v).shape
        (1, 3, 2, 4)
    """
    run = jnp.zeros(q.shape[:2], jnp.int32) if run is None else run
    q, k, v = only_real(Tokens(None, real), q, k, v)
    real = jnp.ones(q.shape[:2], bool) if real is None else real
    o = _attend(q, k, v, run, real, axis, causal, scale)
    return jnp.where(real[..., None, None], o, 0)


def split_attention(
    q: Array, k: Array, v: Array, run: Array | None, real: Array | None, *, causal: bool, scale: float
) -> Array | None:
    """Attention by the ring where the mesh that is set splits sequences, as `lightnet.scan.placement` says.

    Args:
        q: whole arrays (B, L, H, M); see `ring_attention`.
        k: (B, L, H, M).
        v: (B, L, H, V).
        run: (B, L) or None.
        real: (B, L) or None.
        causal: see `ring_attention`.
        scale: of the scores.

    Returns:
        (B, L, H, V), or None where sequences are not split.

    Example:
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> split_attention(x, x, x, None, None, causal=True, scale=0.5) is None
        True
    """
    placed: Placement | None = placement(ATTENTION.axes, operands := (q, k, v, run))
    if placed is None or placed.parts["L"] == 1:
        return None
    return sharded(ATTENTION, _whole_sequences, placed, operands, None, Tokens(None, real), causal=causal, scale=scale)


def _whole_sequences(*_: Any) -> Any:
    raise TypeError("the ring is for sequences that are split")


def _split(operands: Any, tokens: Tokens, axes: tuple[str, ...], *, causal: bool, scale: float) -> Array:
    q, k, v, run = operands
    return ring_attention(q, k, v, run, tokens.real, axis=axes, causal=causal, scale=scale)


ATTENTION = Recurrence(
    name="split_attention",
    axes=Axes(("B L H M", "B L H M", "B L H V", "B L"), None, "B L H V"),
    reference=_whole_sequences,
    xla=_whole_sequences,
    split=_split,
)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attend(q: Array, k: Array, v: Array, run: Array, real: Array, axis: Any, causal: bool, scale: float) -> Array:
    return _forward(q, k, v, run, real, axis, causal, scale)[0]


def _forward(
    q: Array, k: Array, v: Array, run: Array, real: Array, axis: Any, causal: bool, scale: float
) -> tuple[Array, tuple]:
    """Values, and what the gradient needs: the operands, the values and log sums of exponentials (B, H, L)."""
    dtype, length = state_dtype(q, k, v), q.shape[1]
    visible = partial(_visible, run, causal, length, axis)
    shape = (q.shape[0], q.shape[2], length)
    empty = Sums(
        jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype), jnp.zeros((*q.shape[:3], v.shape[3]), dtype)
    )

    def attend(sums: Sums, turn: Array, stretch: Stretch) -> tuple[Any, Any]:
        def chunk(sums: Sums, given: tuple[Array, Any]) -> tuple[Any, None]:
            place, part = given
            scores = jnp.where(visible(turn, place, part), _scores(q, part.keys, scale, dtype), -jnp.inf)
            return _absorb(sums, scores, part.values), None

        return lax.scan(chunk, sums, _numbered(stretch))[0], stretch

    sums, _ = _round(attend, empty, _stretch(k, v, run, real), axis)
    total = jnp.where(sums.total > 0, sums.total, 1)
    o = (sums.values / jnp.moveaxis(total, 1, 2)[..., None]).astype(v.dtype)
    return o, (q, k, v, run, real, o, _finite(sums.maximum) + jnp.log(total))


def _backward(axis: Any, causal: bool, scale: float, residuals: tuple, do: Array) -> tuple:
    """One more round: gradients of keys and values travel with them, and are at home behind the last turn."""
    q, k, v, run, real, o, log_total = residuals
    dtype, length = state_dtype(q, k, v), q.shape[1]
    visible = partial(_visible, run, causal, length, axis)
    do = do.astype(dtype)
    along_o = jnp.einsum("blhv,blhv->bhl", do, o.astype(dtype))
    stretch = _stretch(k, v, run, real)
    slopes = tuple(jnp.zeros(x.shape, dtype) for x in (stretch.keys, stretch.values))

    def attend(dq: Array, turn: Array, moving: Any) -> tuple[Array, Any]:
        def chunk(dq: Array, given: Any) -> tuple[Array, tuple]:
            (place, part), (dk, dv) = given
            scores = _scores(q, part.keys, scale, dtype)
            # Selected before the exponential, which an invisible score could overflow.
            weights = jnp.exp(jnp.where(visible(turn, place, part), scores - log_total[..., None], -jnp.inf))
            dv += jnp.einsum("bhls,blhv->bshv", weights, do)
            dscores = jnp.einsum("blhv,bshv->bhls", do, part.values.astype(dtype)) - along_o[..., None]
            dscores = scale * weights * dscores
            dk += jnp.einsum("bhls,blhm->bshm", dscores, q.astype(dtype))
            return dq + jnp.einsum("bhls,bshm->blhm", dscores, part.keys.astype(dtype)), (dk, dv)

        stretch, slopes = moving
        dq, slopes = lax.scan(chunk, dq, (_numbered(stretch), slopes))
        return dq, (stretch, slopes)

    dq, (_, slopes) = _round(attend, jnp.zeros(q.shape, dtype), (stretch, slopes), axis)
    dk, dv = (_joined(_hand_on(x, axis), length) for x in slopes)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)


def _round(attend: Callable, kept: Any, moving: Any, axis: Any) -> tuple[Any, Any]:
    """What is kept and what moves, behind as many turns as there are devices; handed on between two turns."""

    def one(carry: tuple[Any, Any], turn: Array) -> tuple[tuple[Any, Any], None]:
        kept, moving = attend(carry[0], turn, carry[1])
        return (kept, _hand_on(moving, axis)), None

    count = lax.axis_size(axis)
    (kept, moving), _ = lax.scan(one, (kept, moving), jnp.arange(count - 1))
    return attend(kept, jnp.asarray(count - 1), moving)


def _hand_on(arrays: Any, axis: Any) -> Any:
    count = lax.axis_size(axis)
    return jax.tree.map(lambda x: lax.ppermute(x, axis, [(i, (i + 1) % count) for i in range(count)]), arrays)


def _stretch(k: Array, v: Array, run: Array, real: Array) -> Stretch:
    """Of this device, cut into chunks."""
    size = min(CHUNK, k.shape[1])

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    return Stretch(*map(cut, (k, v, run, real)))


def _joined(x: Array, length: int) -> Array:
    """Chunks (N, B, C, ...) as one array (B, L, ...)."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]


def _numbered(stretch: Stretch) -> tuple[Array, Any]:
    """Chunks with the place of their first token in the stretch."""
    count, _, size = stretch.run.shape
    return size * jnp.arange(count), stretch


def _visible(run: Array, causal: bool, length: int, axis: Any, turn: Array, place: Array, part: Stretch) -> Array:
    """Whether tokens of this device (B, 1, L, C) see those of a chunk."""
    seen = part.real[:, None, :] & (run[:, :, None] == part.run[:, None, :])
    if causal:
        here = lax.axis_index(axis)
        first = (here - turn) % lax.axis_size(axis) * length + place
        seen &= (here * length + jnp.arange(length)[:, None] >= first + jnp.arange(part.run.shape[1])[None, :])[None]
    return seen[:, None]


def _scores(q: Array, keys: Array, scale: float, dtype: Any) -> Array:
    return scale * jnp.einsum("blhm,bshm->bhls", q, keys, preferred_element_type=dtype)


def _absorb(sums: Sums, scores: Array, values: Array) -> Sums:
    """The sums behind more keys: scores (B, H, L, C), -inf where not visible, and values (B, C, H, V)."""
    maximum = jnp.maximum(sums.maximum, scores.max(axis=-1))
    weights = jnp.exp(scores - _finite(maximum)[..., None])
    stays = jnp.exp(sums.maximum - _finite(maximum))
    more = jnp.einsum("bhls,bshv->blhv", weights, values.astype(weights.dtype))
    return Sums(
        maximum, stays * sums.total + weights.sum(axis=-1), jnp.moveaxis(stays, 1, 2)[..., None] * sums.values + more
    )


def _finite(maximum: Array) -> Array:
    """0 where nothing is visible, so that -inf is never subtracted from itself."""
    return jnp.where(maximum > -jnp.inf, maximum, 0)
