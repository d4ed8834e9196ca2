"""The backward pass of causal LightNet on Hopper: three kernels, with the state before each chunk as it was stored.

With scaled queries s = q / n, the normalisers n, keys k = exp(a - reference), and P the products of gradients of
outputs with values, over the tokens that count for each other,

    dq = (P k + dO S^T) / n,    dn = -s dq,    da = k * (P^T s + sum of later dn + V dS^T + dd),
    dv = (s k^T)^T dO + k dS,

where S is the state before the chunk, dS and dd the gradients of the state and of its sum of exponentials behind it.
`within` has all but the terms with these, for all chunks at once. `march` takes dS and dd from the last chunk to the
first, 64 columns of the values of a head at a time, and leaves them behind each chunk. `beyond` adds their terms, for
all chunks at once; so a program of each has few enough numbers for its registers.

Per token and head of 128 channels in bfloat16 1,792 bytes must move; with what the kernels hand each other and the
states of both directions in half precision, 512 bytes each, which are written and read, it is three times as many.

All maxima are held fixed. What reaches a logit through the maximum of the final state is added before rounding, since
the two may cancel. Where XLA's form had to run forward it runs here too, for the whole call.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.scan.additive import launch_gpu
from lightnet.scan.additive.blocks_gpu import (
    CHUNK,
    ENTERS,
    GROUP,
    LANES,
    PART,
    STAYS,
    Before,
    Plan,
    flags,
    masked,
    padded,
    square,
    where_steep,
)
from lightnet.scan.additive.chunk import AdditiveState
from lightnet.scan.additive.gradients_gpu import beyond, march, within
from lightnet.scan.additive.reference import Operands
from lightnet.scan.additive.xla import as_it_was, second_order, share_of_maximum, slopes, unit
from lightnet.scan.kernels import flat
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

MOST = 8  # chunks that a program takes one after the other


@jax.custom_vjp
def gradient(
    operands: Operands,
    initial_state: AdditiveState,
    tokens: Tokens,
    before: Before,
    final: AdditiveState,
    steep: Array,
    cotangents: tuple[Array, AdditiveState],
) -> tuple[Operands, AdditiveState]:
    """Of all operands and the initial state.

    Args:
        operands: q, key logits, v, and no key factor.
        initial_state: of the forward pass.
        tokens: which begin a run, and which are real.
        before: what the forward pass stored.
        final: state of the forward pass.
        steep: whether XLA's form had to run there.
        cotangents: of outputs and final state.
    """
    found = _by_kernels(operands, initial_state, tokens, before, final, cotangents)

    def exactly(arrays: Any, initial_state: AdditiveState, tokens: Tokens, final_bar: AdditiveState) -> Any:
        q, logits, v, do = (x.reshape(*like.shape) for x, like in zip(arrays, shapes, strict=True))
        of_operands, of_state = slopes((q, logits, v, None), initial_state, tokens, (do, final_bar))
        return tuple(map(flat, of_operands[:3])), of_state

    do, final_bar = cotangents
    shapes = *operands[:3], do
    given = tuple(map(flat, shapes)), initial_state, tokens, final_bar
    of_operands, of_state = where_steep(steep, (tuple(map(flat, found[0])), found[1]), exactly, given)
    q, logits, v = (x.reshape(like.shape) for x, like in zip(of_operands, operands[:3], strict=True))
    return (q, logits, v, None), of_state


def _gradient_forward(*given: Any) -> Any:
    return gradient(*given), given


def _gradient_backward(given: Any, bars: Any) -> Any:
    """Derivatives of second order by XLA: all that the forward pass found is a function of the others."""
    operands, initial_state, tokens, before, final, _, cotangents = given
    doperands, dstate, dcotangents = second_order(operands, initial_state, tokens, cotangents, bars)
    return doperands, dstate, None, *jax.tree.map(jnp.zeros_like, (before, final)), None, dcotangents


gradient.defvjp(_gradient_forward, _gradient_backward)


class _Call(NamedTuple):
    """What the kernels of one call share: values, gradients of outputs, flags, sizes, and how many chunks there are."""

    v: Array
    do: Array
    flagged: list[Array]
    plan: Plan
    chunks: int

    @property
    def grid(self) -> dict[str, int]:
        """Of the kernels that take a few chunks per program."""
        return {"batch": self.v.shape[0], "head": self.v.shape[2], "stretch": pl.cdiv(self.chunks, self.plan.each)}

    def shape(self, *sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        """Per head."""
        return launch_gpu.shape(self.v.shape[0], self.v.shape[2], *sizes, dtype=dtype)

    def vectors(self, *of_chunks: Array) -> Array:
        """Side by side (B, H, chunks, count, K), for all chunks of the programs."""
        missing = self.grid["stretch"] * self.plan.each - self.chunks
        together = jnp.stack(jnp.broadcast_arrays(*of_chunks), axis=3)
        return jnp.pad(together, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))


def _by_kernels(
    operands: Operands,
    initial_state: AdditiveState,
    tokens: Tokens,
    before: Before,
    final: AdditiveState,
    cotangents: tuple[Array, AdditiveState],
) -> tuple[tuple[Array, Array, Array], AdditiveState]:
    q, logits, v, _ = operands
    (batch, length, heads, key), bar = logits.shape, cotangents[1]
    share, from_start = share_of_maximum(logits, initial_state, tokens, final, bar)
    chunks = pl.cdiv(length, CHUNK)
    each = _each(batch * heads, chunks)
    plan = Plan(length + -length % hopper.TILE, each, key, v.shape[3], v.dtype)
    flagged = flags(tokens, batch, length, each * CHUNK, v.dtype)
    call = _Call(padded(v), padded(cotangents[0]), flagged, plan, chunks)
    logits = masked(logits, tokens)
    units = _units(call, before, final)
    dq, scaled, dk, dv, sums = _run_within(call, padded(q), logits, units, before.state)
    behind, total, *first = _run_march(call, scaled, units.gain, sums, units.rescale, bar)
    share_of_chunk = jnp.where(units.lasting, share[:, :, None], 0)
    vectors = call.vectors(units.reference, total, share_of_chunk, final.maximum[:, :, None])
    dlogits, dv = _run_beyond(call, logits, dk, dv, vectors, behind)
    maximum_bar = jnp.where(from_start, share, 0) + unit(initial_state, *first)
    initial_bar = as_it_was(tokens, final, bar, AdditiveState(maximum_bar, *first))
    return (dq[:, :length], dlogits[:, :length], dv[:, :length]), initial_bar


def _each(heads: int, chunks: int) -> int:
    """How many chunks a program takes: few where cores would have nothing to do.

    Example:
        >>> _each(256, 64), _each(16, 32), _each(1, 3)
        (8, 4, 1)
    """
    return min(MOST, chunks, pl.cdiv(heads * chunks, hopper.PROCESSORS))


class _Units(NamedTuple):
    """How the units of chunks, exp(reference), go over into each other.

    Attributes:
        reference: (B, H, chunks, K).
        total: (B, H, chunks, K), of the state before the chunk, in its units; 0 where that does not count.
        gain: (B, H, chunks, K), of a gradient in units of the chunk, in those of the one before or the initial state.
        rescale: (B, H, K), of the final gradient in those of the last chunk.
        lasting: (B|1, 1, chunks, 1), whether no run begins behind the chunk.
    """

    reference: Array
    total: Array
    gain: Array
    rescale: Array
    lasting: Array


def _units(call: _Call, before: Before, final: AdditiveState) -> _Units:
    maximum, total, reference = (x[:, :, : call.chunks] for x in before[:3])
    first = call.flagged[0][:, None, : call.chunks * CHUNK : CHUNK, None] if call.flagged else jnp.full((1,) * 4, -1)
    entering = jnp.where(first & ENTERS != 0, maximum, -jnp.inf)
    decay = jnp.exp(entering - reference)
    fading = jnp.exp(reference[:, :, :-1] - reference[:, :, 1:])
    gain = jnp.concatenate([decay[:, :, :1], jnp.where(entering[:, :, 1:] > -jnp.inf, fading, 0)], axis=2)
    rescale = jnp.where(final.maximum > -jnp.inf, jnp.exp(reference[:, :, -1] - final.maximum), 0)
    begins = (first & STAYS == 0).astype(jnp.int32)
    lasting = lax.cumsum(begins, axis=2, reverse=True) == begins
    return _Units(reference, decay * total, gain, rescale, lasting)


def _run_within(call: _Call, q: Array, logits: Array, units: _Units, before: Array) -> list[Array]:
    """Gradients of queries, scaled queries, parts of the gradients of keys and values, sums of dn (B, H, chunks, K)."""
    plan = call.plan
    of_keys, tile = launch_gpu.shape(*q.shape, dtype=plan.dtype), hopper.tile(CHUNK, GROUP, dtype=plan.dtype)
    of_values = launch_gpu.shape(*call.v.shape, dtype=plan.dtype)
    sums = call.shape(call.grid["stretch"] * plan.each, plan.key)
    scratch = (
        square(call.flagged, plan.dtype),
        hopper.tile(CHUNK, CHUNK, dtype=plan.dtype),
        *(tile, tile),
        plgpu.SMEM((plan.key,), jnp.float32),
        hopper.tile(plan.key, plan.value, dtype=plan.dtype),
        plgpu.Barrier(),
    )
    run = launch_gpu.kernel(within, [of_keys, of_keys, of_keys, of_values, sums], call.grid, scratch, LANES, plan=plan)
    vectors = call.vectors(units.reference, units.total)
    return run(*call.flagged, q, logits, call.v, call.do, vectors, before)


def _run_march(
    call: _Call, scaled: Array, gain: Array, sums: Array, rescale: Array, bar: AdditiveState
) -> tuple[Array, Array, Array, Array]:
    """Behind each chunk dS in half precision and dd, and both of the initial state."""
    plan, chunks = call.plan._replace(each=call.chunks), call.chunks
    outputs = [
        call.shape(chunks, plan.key, plan.value, dtype=plan.dtype),
        call.shape(plan.parts, chunks, plan.key),
        call.shape(plan.key, plan.value),
        call.shape(plan.parts, plan.key),
    ]
    grid = {"batch": call.v.shape[0], "head": call.v.shape[2], "part": plan.parts}
    scratch = (hopper.tile(plan.key, PART, dtype=plan.dtype),)
    run = launch_gpu.kernel(march, outputs, grid, scratch, LANES, plan=plan)
    vectors = jnp.stack([gain, sums[:, :, :chunks]], axis=3)
    last = rescale * bar.total, rescale[..., None] * bar.state
    behind, total, state_bar, total_bar = run(*call.flagged, scaled, call.do, vectors, *last)
    return behind, total[:, :, 0], total_bar[:, :, 0], state_bar


def _run_beyond(call: _Call, logits: Array, dk: Array, dv: Array, vectors: Array, behind: Array) -> tuple[Array, Array]:
    """Gradients of key logits and values, from their parts within chunks."""
    plan = call.plan
    state, out = hopper.tile(plan.key, plan.value, dtype=plan.dtype), hopper.tile(CHUNK, GROUP, dtype=plan.dtype)
    outputs = [launch_gpu.shape(*x.shape, dtype=plan.dtype) for x in (dk, dv)]
    run = launch_gpu.kernel(beyond, outputs, call.grid, (out, state, plgpu.Barrier()), LANES, plan=plan)
    dlogits, dv = run(*call.flagged, logits, call.v, dk, dv, vectors, behind)
    return dlogits, dv
