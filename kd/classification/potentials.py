"""Sinkhorn's potentials, iterated in logarithms, and the gradient of the iterations.

With L = -W / eps and g_0 = 0, for k = 1 ... n

    f_k = log a - logsumexp_j(L_ij + g_{k-1,j}),    g_k = log b - logsumexp_i(L_ij + f_{k,i})

Where the entries of L are close together the sums are products of exp(L) with vectors, and so are those of the
gradient, because the matrix of every iteration is the last plan with its rows and columns scaled. Otherwise each sum is
relative to its own largest term.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kd.typing import Array

CLOSE = 20.0  # logarithms whose exponentials may be multiplied


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def potentials(n_iters: int, L: Array, log_a: Array, log_b: Array) -> tuple[Array, Array]:
    """f and g after some iterations; see the module.

    Args:
        n_iters: n.
        L: (n, m).
        log_a: (n).
        log_b: (m).

    Returns:
        f (n) and g (m).

    Example:
        >>> f, g = potentials(5, jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(2))
        >>> print(f"{f[0] + g[0]:.4f}")
        -0.6931
    """
    f, g = _iterated(n_iters, L, log_a, log_b)
    return f[-1], g[-1]


def _iterated(n_iters: int, L: Array, log_a: Array, log_b: Array) -> tuple[Array, Array]:
    """All of the f (n_iters, n) and g (n_iters, m)."""
    largest = L.max()

    def with_products() -> tuple[Array, Array]:
        K = jnp.exp(L - largest)

        def step(v: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            u = jnp.exp(log_a) / _product(K, v)
            v = jnp.exp(log_b) / _product(u, K)
            return v, (u, v)

        u, v = jax.lax.scan(step, jnp.ones_like(log_b), length=n_iters)[1]
        # the shift is the f's: g_0 is 0
        return jnp.log(u) - largest, jnp.log(v)

    def with_logarithms() -> tuple[Array, Array]:
        def step(g: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            f = log_a - jax.nn.logsumexp(L + g[None], axis=1)
            g = log_b - jax.nn.logsumexp(L + f[:, None], axis=0)
            return g, (f, g)

        return jax.lax.scan(step, jnp.zeros_like(log_b), length=n_iters)[1]

    return jax.lax.cond(largest - L.min() < CLOSE, with_products, with_logarithms)


def _forward(n_iters: int, L: Array, log_a: Array, log_b: Array) -> tuple[tuple[Array, Array], Any]:
    f, g = _iterated(n_iters, L, log_a, log_b)
    return (f[-1], g[-1]), (L, log_a, log_b, f, g)


def _backward(n_iters: int, saved: Any, cotangents: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    L, log_a, log_b, f, g = saved
    before = jnp.concatenate([jnp.zeros_like(g[:1]), g[:-1]])
    moved = jnp.maximum(jnp.abs(f - f[-1:]).max(), jnp.maximum(jnp.abs(g - g[-1:]).max(), jnp.abs(g[-1]).max()))
    moved = jnp.maximum(moved, jnp.maximum(jnp.abs(log_a).max(), jnp.abs(log_b).max()))
    steps = (f, g, before)
    which = (_with_products, _with_logarithms)
    return jax.lax.cond(moved < CLOSE, *(partial(way, L, log_a, log_b, steps, cotangents) for way in which))


def _with_products(L: Array, log_a: Array, log_b: Array, steps: Any, cotangents: Any) -> tuple[Array, Array, Array]:
    """The gradient where every matrix is the last plan P between two diagonals."""
    f_last, g_last = steps[0][-1], steps[1][-1]
    P = jnp.exp(L + f_last[:, None] + g_last[None])

    def step(carry: Any, k: Any) -> tuple[Any, Any]:
        (df, dg), (da, db), (f, g, before) = carry[:2], carry[2:], k
        # the columns: C = diag(rows) P diag(columns), whose columns sum to 1
        rows, columns = jnp.exp(f - f_last), dg * jnp.exp(g - g_last - log_b)
        df = df - rows * _product(P, columns)
        # the rows
        of_f, at = df * jnp.exp(f - f_last - log_a), jnp.exp(before - g_last)
        back = -at * _product(of_f, P)
        return (jnp.zeros_like(df), back, da + df, db + dg), (rows, columns, of_f, at)

    start = (*cotangents, jnp.zeros_like(log_a), jnp.zeros_like(log_b))
    (_, _, da, db), (rows, columns, of_f, at) = jax.lax.scan(step, start, steps, reverse=True)
    dL = -P * (_product(rows.T, columns) + _product(of_f.T, at))
    return dL, da, db


def _with_logarithms(L: Array, log_a: Array, log_b: Array, steps: Any, cotangents: Any) -> tuple[Array, Array, Array]:
    """The gradient for any potentials: every matrix anew."""

    def step(carry: Any, k: Any) -> tuple[Any, None]:
        df, dg, dL, da, db = carry
        f, g, before = k
        of_columns = dg[None] * jnp.exp(L + f[:, None] + (g - log_b)[None])
        df_here = df - of_columns.sum(1)
        of_rows = df_here[:, None] * jnp.exp(L + (f - log_a)[:, None] + before[None])
        carry = (jnp.zeros_like(df), -of_rows.sum(0), dL - of_columns - of_rows, da + df_here, db + dg)
        return carry, None

    start = (*cotangents, jnp.zeros_like(L), jnp.zeros_like(log_a), jnp.zeros_like(log_b))
    return jax.lax.scan(step, start, steps, reverse=True)[0][2:]


potentials.defvjp(_forward, _backward)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")
