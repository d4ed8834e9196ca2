"""Generators f of the f-divergences D_f(q || p) = sum_v p_v f(u_v), u = q / p, as functions of log u.

    name                D_f(q || p)       f(u)                                            f'(u)
    reverse_kl          KL(q || p)        u log u                                         log u + 1
    forward_kl          KL(p || q)        -log u                                          -1 / u
    jensen_shannon      2 JSD, beta 1/2   u log u - (u + 1) log((u + 1) / 2)              log(2 u / (1 + u))
    total_variation     TV                |u - 1| / 2                                     sign(u - 1) / 2
    chi2_qp             chi^2(q || p)     (u - 1)^2                                       2 (u - 1)
    chi2_pq             chi^2(p || q)     (1 - u)^2 / u                                   1 - 1 / u^2
    squared_hellinger   Hellinger^2       (sqrt u - 1)^2                                  1 - 1 / sqrt u
    jeffreys            both KLs          (u - 1) log u                                   log u + 1 - 1 / u
    softened_kl         2 KL(m || p)      (u + 1) log((u + 1) / 2)                        log((u + 1) / 2) + 1
    alpha(a)            alpha             (u^(1 - a) - (1 - a) u - a) / (a (a - 1))       (1 - u^-a) / a

m is the mean of p and q. The first argument of D_f is what is trained.
Sources: Go et al. (arXiv 2302.08215), Wang et al. (arXiv 2309.16240).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd.rows import Row, alpha_divergence, times
from kd.typing import Array


class Generator(NamedTuple):
    """A convex function with f(1) = 0, and its derivative by u, both of log u.

    Attributes:
        f: log u -> f(u).
        derivative: log u -> f'(u); its value at infinity is what an entry that the teacher excludes costs, per q.
    """

    f: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


def _shannon(x: Array) -> Array:
    return times(jnp.exp(x), math.log(2) - jax.nn.softplus(-x)) - jax.nn.softplus(x) + math.log(2)


GENERATORS = {
    "reverse_kl": Generator(lambda x: times(jnp.exp(x), x), lambda x: x + 1),
    "forward_kl": Generator(lambda x: -x, lambda x: -jnp.exp(-x)),
    "jensen_shannon": Generator(_shannon, lambda x: math.log(2) - jax.nn.softplus(-x)),
    "total_variation": Generator(lambda x: jnp.abs(jnp.expm1(x)) / 2, lambda x: jnp.sign(x) / 2),
    "chi2_qp": Generator(lambda x: jnp.expm1(x) ** 2, lambda x: 2 * jnp.expm1(x)),
    "chi2_pq": Generator(lambda x: 4 * jnp.sinh(x / 2) ** 2, lambda x: -jnp.expm1(-2 * x)),
    "squared_hellinger": Generator(lambda x: jnp.expm1(x / 2) ** 2, lambda x: -jnp.expm1(-x / 2)),
    "jeffreys": Generator(lambda x: times(jnp.expm1(x), x), lambda x: x - jnp.expm1(-x)),
    "softened_kl": Generator(
        lambda x: times(1 + jnp.exp(x), jax.nn.softplus(x) - math.log(2)),
        lambda x: jax.nn.softplus(x) - math.log(2) + 1,
    ),
}


def as_generator(generator: str | Generator) -> Generator:
    """A generator by its name, or the user's own.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> as_generator("forward_kl") is GENERATORS["forward_kl"]
        True
    """
    if isinstance(generator, str):
        if generator not in GENERATORS:
            raise ValueError(f"generator: got {generator!r}, expected one of {', '.join(GENERATORS)}, or a Generator")
        return GENERATORS[generator]
    return generator


def alpha(alpha: float | int) -> Generator:
    """The generator of the alpha-divergence; at 0 and 1 its limits, u log u - u + 1 and -log u + u - 1.

    Args:
        alpha: any finite number.

    Returns:
        The generator.

    Raises:
        ValueError: alpha is not finite.

    Example:
        >>> [round(float(alpha(a).f(jnp.log(2.0))), 4) for a in (0.0, 0.5, 1.0)]
        [0.3863, 0.3431, 0.3069]
    """
    row = alpha_divergence(alpha)

    def derivative(x: Array) -> Array:
        return -jnp.expm1(-alpha * x) / alpha if alpha else x

    return Generator(lambda x: row.phi(jnp.zeros_like(x), x), derivative)


def f_divergence(generator: str | Generator = "jensen_shannon") -> Row:
    """Any f-divergence as a separable one: phi = p f(q / p), a = q f'(q / p).

    Args:
        generator: one of the table, or a generator of one's own.

    Returns:
        The row.

    Raises:
        ValueError: there is no generator of that name.

    Example:
        >>> row = f_divergence("total_variation")
        >>> float(row.phi(jnp.log(0.5), jnp.log(0.75)).round(6))
        0.125
    """
    f, derivative = as_generator(generator)

    def phi(lp: Array, lq: Array) -> Array:
        absent = lp == -jnp.inf
        x = jnp.where(absent, 0, lq - lp)
        # p f(q / p) as p -> 0
        limit = times(jnp.exp(lq), derivative(jnp.full_like(lq, jnp.inf)))
        return jnp.where(absent, limit, times(jnp.exp(lp), f(x)))

    return Row(phi, lambda lp, lq: times(jnp.exp(lq), derivative(lq - lp)))
