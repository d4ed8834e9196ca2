"""One token of the diagonal recurrence, forward and backward, with the states n before the channels d.

Channels are last because they are many: the vector units of every platform work along the last axis. Numbers are given
as parts: as (complex array,) or (real array,), or as (real, imaginary) where a platform has no complex numbers.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lightnet.scan.linear.chunk import times
from lightnet.typing import Array

Parts = tuple[Array, ...]


class Diagonal(NamedTuple):
    """The operands of `diagonal_ssm`."""

    x: Array
    a: Array
    b: Array
    c: Array


class Weights(NamedTuple):
    """What does not depend on the token, in the precision of the state, (1, N, D) or (N, D)."""

    a: Parts
    b: Parts
    c: Parts


def real_products(weights: Parts, h: Parts) -> Array:
    """Re(weights h)."""
    if len(h) == 1:
        return jnp.real(weights[0] * h[0])
    return weights[0] * h[0] - weights[1] * h[1]


def sum_over_states(terms: Array) -> Array:
    """Of (B, N, D), (B, 1, D). As a product of matrices, which takes less time on a CPU than XLA's own sum."""
    ones = jnp.ones(terms.shape[1], terms.dtype)
    return jnp.einsum("n,bnd->bd", ones, terms, precision=jax.lax.Precision.HIGHEST)[:, None]


def advance(h: Parts, x: Array, weights: Weights) -> Parts:
    """The state (B, N, D) behind a token x (B, 1, D) that finds the state h."""
    return tuple(part + b * x for part, b in zip(times(weights.a, h), weights.b, strict=True))


def retreat(before: Parts, x: Array, weights: Weights, dy: Array, dh: Parts) -> tuple[Parts, Array, Parts, Parts]:
    """The gradients of one token, but for c's, which is `of_readout`.

    Args:
        before: the state that the token finds, (B, N, D).
        x: its input, (B, 1, D).
        weights: at every token.
        dy: cotangent of its output, (B, 1, D), real.
        dh: cotangent of the state behind it, (B, N, D).

    Returns:
        Cotangents of `before`; of x, not summed over the states; of a and of b, not summed over the batch. They are
        what JAX defines of complex numbers: nothing is conjugated.
    """
    dh = tuple(part + c * dy for part, c in zip(dh, weights.c, strict=True))
    da, db = times(dh, before), tuple(part * x for part in dh)
    return times(weights.a, dh), real_products(weights.b, dh), da, db


def of_readout(after: Parts, dy: Array) -> Parts:
    """Cotangent of c, not summed over the batch, of the state behind a token and the cotangent of its output."""
    return tuple(part * dy for part in after)


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
