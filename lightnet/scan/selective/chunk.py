"""One token of the selective recurrence, forward and backward, with the states n before the channels d.

Channels are last because they are many: the vector units of every platform work along the last axis. All of it works
on the arrays of several sequences, (B, N, D) and so on, and, but for `retreat`, on those of one, (N, D).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lightnet.scan.fade import fade
from lightnet.typing import Array


class Selective(NamedTuple):
    """The operands of `selective_scan`, or those of one token.

    For one token all are in the precision of the state, and lie as the state does, (B, N, D), with size 1 in the axes
    that they do not have: x, dt and z are (B, 1, D), B and C (B, N, 1), A (1 or B, N, D) and D (1, 1, D).
    """

    x: Array
    dt: Array
    A: Array
    B: Array
    C: Array
    D: Array | None
    z: Array | None


class Step(NamedTuple):
    """What a token does to the state and reads of it, laid out like its operands; `input` is dt x."""

    dt: Array
    input: Array
    A: Array
    B: Array
    C: Array


class Sums(NamedTuple):
    """How a platform sums.

    Attributes:
        over_states: (weights, h) -> sum_n weights h, with size 1 in the place of n.
        over_channels: (h, weights) -> sum_d h weights, with size 1 in the place of d.
    """

    over_states: Callable[[Array, Array], Array]
    over_channels: Callable[[Array, Array], Array]


def one_token(token: Selective) -> Selective:
    """The operands of one token as they come, x, dt and z (B, D), B and C (B, N), laid out as the state is."""
    x, dt, A, B, C, D, z = token
    return Selective(x[:, None], dt[:, None], A, B[..., None], C[..., None], D, None if z is None else z[:, None])


def read(weights: Array, h: Array) -> Array:
    """sum_n weights[n] h[n, d], (B, 1, D). As a product of matrices, since XLA's CPU sums take ten times as long."""
    if weights.shape[-1] > 1:
        weights, h = jnp.ones_like(h[..., :1]), weights * h
    return jnp.einsum("bn,bnd->bd", weights[..., 0], h, precision=jax.lax.Precision.HIGHEST)[:, None]


def _over_channels(h: Array, weights: Array) -> Array:
    return jnp.einsum("bnd,bd->bn", h, weights[:, 0], precision=jax.lax.Precision.HIGHEST)[..., None]


PRODUCTS = Sums(read, _over_channels)


def step_of(token: Selective) -> Step:
    """What a token does, of its operands."""
    return Step(token.dt, token.dt * token.x, token.A, token.B, token.C)


def advance(h: Array, step: Step) -> Array:
    """The state behind a token that finds the state h."""
    return fade(step.dt * step.A, h, step.input * step.B)


def skipped(y: Array, token: Selective) -> Array:
    """What was read of the state, and what goes straight from the input to the output."""
    return y if token.D is None else y + token.D * token.x


def gated(y: Array, token: Selective) -> Array:
    """The output from what was read of the state."""
    y = skipped(y, token)
    return y if token.z is None else y * jax.nn.silu(token.z)


def ungated(y: Array, z: Array, dy: Array) -> tuple[Array, Array]:
    """Cotangents of y and z, if dy is the one of y silu(z)."""
    gate = jax.nn.sigmoid(z)
    return dy * z * gate, dy * y * gate * (1 + z * (1 - gate))


def pull(before: Array, after: Array, step: Step, dy: Array, dh: Array, sums: Sums) -> tuple[Array, Step]:
    """The gradients of what one token does.

    Args:
        before: the state that the token finds.
        after: the state behind it.
        step: what it does.
        dy: cotangent of what is read of the state behind it.
        dh: cotangent of the state behind it.
        sums: of this platform.

    Returns:
        Cotangents of `before` and of the parts of the step; A's is not summed over sequences.
    """
    dh = dh + step.C * dy
    dbefore = fade(step.dt * step.A, dh)
    dexponent = dbefore * before
    dB, dC = sums.over_channels(dh, step.input), sums.over_channels(after, dy)
    ddt, dinput = sums.over_states(step.A, dexponent), sums.over_states(step.B, dh)
    return dbefore, Step(ddt, dinput, step.dt * dexponent, dB, dC)


def of_inputs(token: Selective, ddt: Array, dinput: Array, dy: Array) -> tuple[Array, Array]:
    """Cotangents of x and dt, of those of the parts of the step and of what was read of the state and skips it."""
    dx = token.dt * dinput
    return (dx if token.D is None else dx + token.D * dy), ddt + token.x * dinput


def retreat(before: Array, token: Selective, dy: Array, dh: Array) -> tuple[Array, Selective]:
    """The gradients of one token of several sequences.

    Args:
        before: the state that the token finds, (B, N, D).
        token: its operands.
        dy: cotangent of its output, (B, 1, D).
        dh: cotangent of the state behind it, (B, N, D).

    Returns:
        Cotangents of `before` and of the operands; A's and D's as (B, N, D) and (B, 1, D), not summed over the batch.
    """
    step = step_of(token)
    after, dz = advance(before, step), None
    if token.z is not None:
        dy, dz = ungated(skipped(read(token.C, after), token), token.z, dy)
    dbefore, found = pull(before, after, step, dy, dh, PRODUCTS)
    dx, ddt = of_inputs(token, found.dt, found.input, dy)
    dD = None if token.D is None else dy * token.x
    return dbefore, Selective(dx, ddt, found.A, found.B, found.C, dD, dz)
