"""One token of the diagonal recurrence, forward and backward, with the states n before the channels d.

Channels are last because they are many: the vector units of every platform work along the last axis.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lightnet.typing import Array


class Diagonal(NamedTuple):
    """The operands of `diagonal_ssm`, or those of one token.

    For one token, without the axis L, all are in the precision of the state and a, b, c are turned, (1, N, D).
    """

    x: Array
    a: Array
    b: Array
    c: Array


def read(h: Array, weights: Array) -> Array:
    """Re sum_n weights[n, d] h[n, d], (B, D). The sum is a product of matrices, faster than XLA's own on a CPU."""
    terms = jnp.real(weights * h)
    return jnp.einsum("n,bnd->bd", jnp.ones(h.shape[1], terms.dtype), terms, precision=jax.lax.Precision.HIGHEST)


def advance(h: Array, token: Diagonal) -> Array:
    """The state (B, N, D) behind a token that finds the state h."""
    return token.a * h + token.b * token.x[:, None]


def retreat(before: Array, token: Diagonal, dy: Array, dh: Array) -> tuple[Array, Diagonal]:
    """The gradients of one token.

    Args:
        before: the state that the token finds, (B, N, D).
        token: its operands.
        dy: cotangent of its output, (B, D), real.
        dh: cotangent of the state behind it, (B, N, D).

    Returns:
        Cotangents of `before` and of the operands, as JAX defines them of complex numbers: nothing is conjugated. Those
        of a, b and c are (B, N, D), not summed over the batch.
    """
    dy = dy[:, None]
    dh = dh + token.c * dy
    gradients = Diagonal(read(dh, token.b), dh * before, dh * token.x[:, None], advance(before, token) * dy)
    return token.a * dh, gradients


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def power(a: Array, exponents: Array, largest: int) -> Array:
    """a^n by n products.

    Squaring, or a logarithm, would multiply the rounding of a few steps by n, and turn the phase of a complex number.

    Args:
        a: (1, N, D).
        exponents: (B, 1, 1) integers.
        largest: bound of the exponents.

    Returns:
        (B, N, D).

    Example:
        >>> power(jnp.full((1, 1, 1), 0.5), jnp.array([0, 3]).reshape(2, 1, 1), 4).ravel().tolist()
        [1.0, 0.125]
    """
    return _power(a, exponents, largest)[0]


def _power(a: Array, exponents: Array, largest: int) -> tuple[Array, Array]:
    """Of a^n the value, and the derivative n a^(n - 1)."""

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        more = i < exponents
        value, slope = carry
        return jnp.where(more, a * value, value), jnp.where(more, a * slope + value, slope)

    shape = jnp.broadcast_shapes(a.shape, exponents.shape)
    return jax.lax.fori_loop(0, largest, step, (jnp.ones(shape, a.dtype), jnp.zeros(shape, a.dtype)))


def _power_backward(largest: int, slope: Array, cotangent: Array) -> tuple[Array, None]:
    return (cotangent * slope).sum(axis=0, keepdims=True), None


power.defvjp(_power, _power_backward)
