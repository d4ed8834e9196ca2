"""A divergence of two linear heads, a chunk of the tokens after the other and a tile of the vocabulary after the other.

With z = h W^T / tau, D = sum_v phi(p_v, q_v) and dD/dz = a - q sum a. So the tiles are gone through for the two
log-sum-exps, for the sums of phi and of a, and for the gradients, which are complete at the end of the forward pass:

    dh = sum over tiles of dz W_tile / tau,    dW_tile = sum over chunks of dz^T h / tau

Where one tile is the whole vocabulary its logits are kept, and computed once. Where the vocabulary is split over the
devices, each has one part of W and the sums are over all of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd.divergences import present
from kd.rows import Row
from kd.typing import Array

ROWS_AT_ONCE = 8192  # of the gradient of a head, while a chunk's part is added


class Plan(NamedTuple):
    """What is known of a call when it is compiled.

    Attributes:
        row: the divergence.
        token_chunk: tokens at once.
        vocab_chunk: entries of the vocabulary at once; None takes all that this device has.
        vocab_axes: axes of the mesh that split the vocabulary.
    """

    row: Row
    token_chunk: int
    vocab_chunk: int | None
    vocab_axes: tuple[str, ...] = ()


class Teacher(NamedTuple):
    """A teacher's hidden states (N, H) and its head (V, H)."""

    h: Array
    W: Array


class Labels(NamedTuple):
    """The labels (N,) of a teacher that is certain."""

    ids: Array


class Running(NamedTuple):
    """A log-sum-exp so far: the largest logit, and the sum relative to it."""

    maximum: Array
    total: Array


def sums(
    plan: Plan,
    gradient: bool,
    h: Array,
    W: Array,
    target: Teacher | Labels,
    weight: Array,
    inverse_tau: Array,
) -> Any:
    """The sum over the tokens of weight D, with its gradients by h and W where they are asked for.

    Args:
        plan: how.
        gradient: whether the gradients are computed.
        h: the student's hidden states (N, H).
        W: its head, or this device's part of it (V, H).
        target: what it is compared with.
        weight: (N,), float32 at least; a token of weight 0 does not count, whatever its hidden states contain.
        inverse_tau: 1 / tau.

    Returns:
        The sum, or the sum, dh (N, H) and dW (V, H).
    """
    tokens = len(h)
    size = min(plan.token_chunk, tokens)
    zero = jnp.zeros((), weight.dtype)
    start = (zero, jnp.zeros_like(h), jnp.zeros(W.shape, weight.dtype)) if gradient else zero

    def one_chunk(carry: Any, i: Array) -> tuple[Any, None]:
        # The last chunk overlaps the one before it; what was counted there has no weight a second time.
        first = jnp.minimum(i * size, tokens - size)

        def take(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, first, size)

        counts = first + jnp.arange(size) >= i * size
        part = jnp.where(counts, take(weight), 0)
        here = (_counted(take(h), part), W, _target_chunk(target, take, part), part, inverse_tau)
        if not gradient:
            return carry + _one_chunk(plan, *here, None), None
        total, dh, dW = carry
        value, dh_part, dW = _one_chunk(plan, *here, dW)
        dh = jax.lax.dynamic_update_slice_in_dim(dh, take(dh) + dh_part.astype(dh.dtype), first, 0)
        return (total + value, dh, dW), None

    done, _ = jax.lax.scan(one_chunk, start, jnp.arange(-(-tokens // size)))
    return (done[0], done[1], done[2].astype(W.dtype)) if gradient else done


def _one_chunk(
    plan: Plan, h: Array, W: Array, target: Teacher | Labels, weight: Array, inverse_tau: Array, dW: Array | None
) -> Any:
    """Value, dh and dW with this chunk's part added; the value alone where dW is None."""
    size = len(W) if plan.vocab_chunk is None else min(plan.vocab_chunk, len(W))
    count = -(-len(W) // size)
    empty = Running(jnp.full(len(h), -jnp.inf, weight.dtype), jnp.zeros(len(h), weight.dtype))

    tile = partial(_tile, plan, size, target, h, W, inverse_tau, weight.dtype)
    only = tile(0) if count == 1 else None

    def logits(i: Array | int) -> tuple[Array, Array]:
        return tile(i) if only is None else only

    running = _over(count, lambda so_far, i: tuple(map(_extended, so_far, logits(i))), (empty, empty))
    normalisers = [_log_sum_exp(each, plan.vocab_axes)[:, None] for each in running]

    def log_probabilities(i: Array | int) -> tuple[Array, Array]:
        lp, lq = (z - n for z, n in zip(logits(i), normalisers, strict=True))
        return lp, lq

    def add(so_far: tuple[Array, Array], i: Array | int) -> tuple[Array, Array]:
        lp, lq = log_probabilities(i)
        phi, a = (present(f, lp, lq).sum(1) for f in (plan.row.phi, plan.row.a))
        return so_far[0] + phi, so_far[1] + a

    phi, a = _summed(_over(count, add, (empty.total, empty.total)), plan.vocab_axes)
    value = jnp.sum(jnp.where(weight == 0, 0, weight * phi))
    if dW is None:
        return value

    def back(so_far: tuple[Array, Array], i: Array | int) -> tuple[Array, Array]:
        dh, dW = so_far
        lp, lq = log_probabilities(i)
        dz = (present(plan.row.a, lp, lq) - jnp.exp(lq) * a[:, None]) * weight[:, None] * inverse_tau
        first = _first(i, size, len(W))
        W_tile = jax.lax.dynamic_slice_in_dim(W, first, size)
        dh = dh + _product("nv,vh->nh", dz.astype(W.dtype), W_tile, dh.dtype)
        return dh, _with_outer(dW, dz.astype(h.dtype), h, first)

    dh, dW = _over(count, back, (jnp.zeros(h.shape, weight.dtype), dW))
    return value, _summed(dh, plan.vocab_axes), dW


def _tile(
    plan: Plan, size: int, target: Teacher | Labels, h: Array, W: Array, inverse_tau: Array, dtype: Any, i: Array | int
) -> tuple[Array, Array]:
    """The teacher's and the student's logits of one tile; -inf for what the tile before it has."""
    first = _first(i, size, len(W))
    column = first + jnp.arange(size)

    def head(h: Array, W: Array) -> Array:
        W_tile = jax.lax.dynamic_slice_in_dim(W, first, size)
        return jnp.where((column >= i * size)[None], _product("nh,vh->nv", h, W_tile, dtype) * inverse_tau, -jnp.inf)

    if isinstance(target, Teacher):
        return head(*target), head(h, W)
    offset = jax.lax.axis_index(plan.vocab_axes) * len(W) if plan.vocab_axes else 0
    is_label = (target.ids[:, None] - offset == column[None]) & (column >= i * size)[None]
    return jnp.where(is_label, 0, jnp.full((), -jnp.inf, dtype)), head(h, W)


def _with_outer(dW: Array, dz: Array, h: Array, first: Array) -> Array:
    """dW (V, H) with dz^T h added from a row on, some rows after the other: the product alone is as large as dW."""
    size = min(ROWS_AT_ONCE, dz.shape[1])

    def add(dW: Array, i: Array | int) -> Array:
        start = _first(i, size, dz.shape[1])
        part = jax.lax.dynamic_slice_in_dim(dz, start, size, axis=1)
        part = jnp.where((start + jnp.arange(size) >= i * size)[None], part, 0)
        rows = jax.lax.dynamic_slice_in_dim(dW, first + start, size) + _product("nv,nh->vh", part, h, dW.dtype)
        return jax.lax.dynamic_update_slice_in_dim(dW, rows, first + start, 0)

    return _over(-(-dz.shape[1] // size), add, dW)


def _first(i: Array | int, size: int, vocabulary: int) -> Array:
    """Where the i-th tile starts: the last one overlaps the one before it."""
    return jnp.minimum(i * size, vocabulary - size)


def _product(letters: str, x: Array, y: Array, dtype: Any) -> Array:
    return jnp.einsum(letters, x, y, precision="highest", preferred_element_type=dtype)


def _extended(so_far: Running, z: Array) -> Running:
    maximum = jnp.maximum(so_far.maximum, z.max(1))
    # a teacher's label is in one tile only: in the others all is -inf
    finite = jnp.where(maximum == -jnp.inf, 0, maximum)
    total = so_far.total * jnp.exp(so_far.maximum - finite) + jnp.exp(z - finite[:, None]).sum(1)
    return Running(maximum, total)


def _log_sum_exp(running: Running, axes: tuple[str, ...]) -> Array:
    """The log-sum-exp over all tiles, and over the devices that have a part of the vocabulary."""
    if not axes:
        return running.maximum + jnp.log(running.total)
    maximum = jax.lax.pmax(running.maximum, axes)
    return maximum + jnp.log(jax.lax.psum(running.total * jnp.exp(running.maximum - maximum), axes))


def _summed(x: Any, axes: tuple[str, ...]) -> Any:
    return jax.lax.psum(x, axes) if axes else x


def _over(count: int, f: Callable[[Any, Array | int], Any], start: Any) -> Any:
    """f(...f(f(start, 0), 1)..., count - 1)."""
    if count == 1:
        return f(start, 0)
    return jax.lax.scan(lambda so_far, i: (f(so_far, i), None), start, jnp.arange(count))[0]


def _counted(x: Array, weight: Array) -> Array:
    """With 0 at tokens that do not count."""
    return jnp.where((weight == 0)[:, None], 0, x)


def _target_chunk(target: Teacher | Labels, take: Callable[[Array], Array], weight: Array) -> Teacher | Labels:
    if isinstance(target, Labels):
        return Labels(take(target.ids))
    return Teacher(_counted(take(target.h), weight), target.W)
