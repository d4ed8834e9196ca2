"""One token of the selective recurrence, forward and backward, with the states n before the channels d.

Channels are last because they are many: the vector units of every platform work along the last axis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lightnet.scan.fade import fade
from lightnet.typing import Array


class Selective(NamedTuple):
    """The operands of `selective_scan`, or those of one token.

    For one token, without the axis L, all are in the precision of the state and A is turned, (1 or B, N, D).
    """

    x: Array
    dt: Array
    A: Array
    B: Array
    C: Array
    D: Array | None
    z: Array | None


def read(h: Array, weights: Array) -> Array:
    """sum_n weights[n] h[n, d], (B, D). As a product of matrices, since XLA's CPU sums take ten times as long."""
    return jnp.einsum("bn,bnd->bd", weights, h, precision=jax.lax.Precision.HIGHEST)


def advance(h: Array, token: Selective) -> Array:
    """The state (B, N, D) behind a token that finds the state h."""
    return fade(_log_decay(token), h, (token.dt * token.x)[:, None] * token.B[:, :, None])


def gated(y: Array, token: Selective) -> Array:
    """The output (B, D) from what was read of the state."""
    y = y if token.D is None else y + token.D[None] * token.x
    return y if token.z is None else y * jax.nn.silu(token.z)


def retreat(before: Array, token: Selective, dy: Array, dh: Array) -> tuple[Array, Selective]:
    """The gradients of one token.

    Args:
        before: the state that the token finds, (B, N, D).
        token: its operands.
        dy: cotangent of its output, (B, D).
        dh: cotangent of the state behind it, (B, N, D).

    Returns:
        Cotangents of `before` and of the operands; A's and D's as (B, N, D) and (B, D), not summed over the batch.
    """
    x, dt, A, B, C, D, z = token
    h = advance(before, token)
    dz = None
    if z is not None:
        gate = jax.nn.sigmoid(z)
        dz = dy * gated(read(h, C), token._replace(z=None)) * gate * (1 + z * (1 - gate))
        dy = dy * z * gate
    dh = dh + C[:, :, None] * dy[:, None]
    dinput = read(dh, B)
    dbefore = fade(_log_decay(token), dh)
    dexponent = dbefore * before
    ddt = x * dinput + read(A * dexponent, jnp.ones_like(B))
    dx = dt * dinput if D is None else dt * dinput + D[None] * dy
    dD = None if D is None else dy * x
    dB, dC = _over_channels(dh, dt * x), _over_channels(h, dy)
    return dbefore, Selective(dx, ddt, dt[:, None] * dexponent, dB, dC, dD, dz)


def _log_decay(token: Selective) -> Array:
    return token.dt[:, None] * token.A


def _over_channels(h: Array, weights: Array) -> Array:
    return jnp.einsum("bnd,bd->bn", h, weights, precision=jax.lax.Precision.HIGHEST)
