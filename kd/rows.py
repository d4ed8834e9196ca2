"""The formulas of the separable divergences: for one entry of the vocabulary, phi(p, q) and a = q dphi/dq.

A divergence is sum_v phi(p_v, q_v) with q = softmax(s / tau), and its gradient is

    d/ds_v = (a_v - q_v sum_w a_w) / tau

so that the two sums over the vocabulary are all that an evaluation in parts has to know. Everything is computed from
log p and log q; phi at p = q = 0 is 0 and is not asked for.

phi and phi + c (q - p) are the same divergence, because p and q sum to 1, and have the same gradient. Each row takes
the c for which phi is at least 0 at every entry, so that rounding cannot make the sum negative; `slope` is that c: the
textbook's term is phi - slope (q - p) and its a is a - slope q.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from kd.typing import Array


class Row(NamedTuple):
    """One separable divergence.

    Attributes:
        phi: (log p, log q) -> the term of one entry, at least 0.
        a: (log p, log q) -> q times the derivative of phi by q.
        slope: c of the module's docstring.
    """

    phi: Callable[[Array, Array], Array]
    a: Callable[[Array, Array], Array]
    slope: float | int = 0.0


def times(weight: Array, x: Array) -> Array:
    """weight * x, and 0 where the weight is 0, whatever x is; so is the derivative.

    Example:
        >>> times(jnp.array([0.0, 2.0]), jnp.array([-jnp.inf, 3.0])).tolist()
        [0.0, 6.0]
    """
    return weight * jnp.where(weight == 0, 0, x)


def exp_remainder(x: Array) -> Array:
    """e^x - 1 - x for |x| < 1, to full relative precision: its series near 0, where the difference loses digits.

    Example:
        >>> print(f"{exp_remainder(jnp.float32(1e-5)) / 0.5e-10:.6f}")
        1.000003
    """
    series = jnp.ones_like(x)
    for n in range(10, 2, -1):
        series = 1 + x / n * series
    return jnp.where(jnp.abs(x) < 0.1, x * x / 2 * series, jnp.expm1(x) - x)


def excess(log_a: Array, log_b: Array) -> Array:
    """a log(a / b) - a + b, at least 0.

    Example:
        >>> excess(jnp.log(jnp.array([0.5, 0.0, 0.5])), jnp.log(jnp.array([0.5, 0.5, 0.0]))).tolist()
        [0.0, 0.5, inf]
    """
    d = log_b - log_a
    near = jnp.abs(d) < 1
    x = jnp.where(near, d, 0)
    a = jnp.exp(log_a)
    return jnp.where(near, a * exp_remainder(x), jnp.exp(log_b) - a - times(a, jnp.where(near, 0, d)))


def power_difference(log_a: Array, log_b: Array, d: Array, k: float | int) -> Array:
    """(b - a) / k where log b - log a = k d; a d at k = 0."""
    if k == 0:
        return times(jnp.exp(log_a), d)
    near = jnp.abs(d) * abs(k) < 1
    x = jnp.where(near, d, 0)
    return jnp.where(near, jnp.exp(log_a) * jnp.expm1(k * x), jnp.exp(log_b) - jnp.exp(log_a)) / k


def log_mixture(log_p: Array, log_q: Array, weight: float | int) -> Array:
    """log(weight p + (1 - weight) q), 0 < weight < 1."""
    return jnp.logaddexp(math.log(weight) + log_p, math.log1p(-weight) + log_q)


def forward_kl() -> Row:
    """KL(p || q): p log(p / q), a = -p, slope 1."""
    return Row(excess, lambda lp, lq: jnp.exp(lq) - jnp.exp(lp), 1.0)


def reverse_kl() -> Row:
    """KL(q || p): q log(q / p), a = q (log(q / p) + 1), slope -1."""
    return Row(lambda lp, lq: excess(lq, lp), lambda lp, lq: times(jnp.exp(lq), lq - lp), -1.0)


def jsd(beta: float | int = 0.5, normalize: bool = False) -> Row:
    """Generalised Jensen-Shannon divergence: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    a = (1 - beta) q log(q / m). It is 0 at beta 0 and 1; divided by beta (1 - beta), with `normalize`, its limits there
    are KL(p || q) and KL(q || p), and those are what that gives.
    """
    _in_range("beta", beta, 0 <= beta <= 1, "from 0 to 1")
    if beta in (0, 1):
        if normalize:
            return forward_kl() if beta == 0 else reverse_kl()
        return Row(lambda lp, lq: jnp.zeros_like(lq), lambda lp, lq: jnp.zeros_like(lq))
    scale = 1 / (beta * (1 - beta)) if normalize else 1.0

    def phi(lp: Array, lq: Array) -> Array:
        lm = log_mixture(lp, lq, beta)
        return scale * (beta * excess(lp, lm) + (1 - beta) * excess(lq, lm))

    def a(lp: Array, lq: Array) -> Array:
        return scale * (1 - beta) * times(jnp.exp(lq), lq - log_mixture(lp, lq, beta))

    return Row(phi, a)


def skew_kl(alpha: float | int = 0.1) -> Row:
    """KL(p || m), m = alpha p + (1 - alpha) q (DistiLLM): a = -(1 - alpha) p q / m, slope 1 - alpha."""
    _in_range("alpha", alpha, 0 <= alpha < 1, "from 0 to below 1")
    if alpha == 0:
        return forward_kl()

    def a(lp: Array, lq: Array) -> Array:
        return (1 - alpha) * times(jnp.exp(lq), -jnp.expm1(lp - log_mixture(lp, lq, alpha)))

    return Row(lambda lp, lq: excess(lp, log_mixture(lp, lq, alpha)), a, 1 - alpha)


def skew_reverse_kl(alpha: float | int = 0.1) -> Row:
    """KL(q || m), m = (1 - alpha) p + alpha q: a = q (log(q / m) + 1 - alpha q / m), slope alpha - 1."""
    _in_range("alpha", alpha, 0 <= alpha < 1, "from 0 to below 1")
    if alpha == 0:
        return reverse_kl()

    def a(lp: Array, lq: Array) -> Array:
        # at q = 0 the ratio is known to be 0, and its logarithm is multiplied by 0
        log_ratio = jnp.where(lq == -jnp.inf, 0, lq - log_mixture(lq, lp, alpha))
        return times(jnp.exp(lq), log_ratio - alpha * jnp.expm1(log_ratio))

    return Row(lambda lp, lq: excess(lq, log_mixture(lq, lp, alpha)), a, alpha - 1)


def alpha_beta(alpha: float | int = 0.5, beta: float | int = 0.5) -> Row:
    """AB-divergence (Cichocki et al. 2011) with all of its singular lines, where it is the limit.

    phi = -(p^alpha q^beta - alpha / (alpha + beta) p^(alpha + beta) - beta / (alpha + beta) q^(alpha + beta))
          / (alpha beta),    a = q^beta (q^alpha - p^alpha) / alpha

        beta = 0            (p^alpha log(p^alpha / q^alpha) - p^alpha + q^alpha) / alpha^2
        alpha = 0           (q^beta log(q^beta / p^beta) - q^beta + p^beta) / beta^2
        alpha + beta = 0    (p^alpha / q^alpha - 1 - log(p^alpha / q^alpha)) / alpha^2
        both 0              (log p - log q)^2 / 2

    It is written so that nothing cancels near those lines.
    """
    for name, x in (("alpha", alpha), ("beta", beta)):
        _in_range(name, x, math.isfinite(x), "finite")
    phi = _swapped(_ab_phi(beta, alpha)) if abs(alpha) < abs(beta) else _ab_phi(alpha, beta)

    def a(lp: Array, lq: Array) -> Array:
        return power_difference(_scaled(alpha, lp) + _scaled(beta, lq), _scaled(alpha + beta, lq), lq - lp, alpha)

    return Row(phi, a)


def _ab_phi(alpha: float | int, beta: float | int) -> Callable[[Array, Array], Array]:
    """phi for |alpha| >= |beta|: ((q^s - p^s) / s - (p^alpha q^beta - p^s) / beta) / alpha, s = alpha + beta."""
    total = alpha + beta
    steepest = max(abs(alpha), abs(beta), abs(total))

    def phi(lp: Array, lq: Array) -> Array:
        d = lq - lp
        if alpha == 0:
            return d * d / 2
        near = jnp.abs(d) * steepest < 1
        x = jnp.where(near, d, 0)
        base = _scaled(total, lp)
        # the first order in d, which the two have in common, left out
        close = sum((sign * exp_remainder(k * x) / k for k, sign in ((total, 1), (beta, -1)) if k), jnp.zeros_like(x))
        far = power_difference(base, _scaled(total, lq), d, total)
        far = far - power_difference(base, _scaled(alpha, lp) + _scaled(beta, lq), d, beta)
        return jnp.where(near, jnp.exp(base) * close, far) / alpha

    return phi


def alpha_divergence(alpha: float | int = 0.5) -> Row:
    """alpha-divergence: (1 - sum p^alpha q^(1 - alpha)) / (alpha (1 - alpha)); alpha 1 is KL(p || q), 0 KL(q || p)."""
    return alpha_beta(alpha, 1 - alpha)


def total_variation() -> Row:
    """|p - q| / 2, a = q sign(q - p) / 2."""
    return Row(
        lambda lp, lq: jnp.abs(jnp.exp(lp) - jnp.exp(lq)) / 2,
        lambda lp, lq: jnp.exp(lq) * jnp.sign(lq - lp) / 2,
    )


def squared_hellinger() -> Row:
    """(sqrt p - sqrt q)^2, a = q - sqrt(p q); at most 2."""
    return Row(
        lambda lp, lq: (jnp.exp(lp / 2) - jnp.exp(lq / 2)) ** 2,
        lambda lp, lq: jnp.exp(lq) - jnp.exp((lp + lq) / 2),
    )


def chi2_pq() -> Row:
    """chi^2(p || q): (p - q)^2 / q, a = q - p^2 / q."""

    def a(lp: Array, lq: Array) -> Array:
        return jnp.exp(lq) - jnp.exp(2 * lp - lq)

    return Row(_chi2, a)


def chi2_qp() -> Row:
    """chi^2(q || p): (p - q)^2 / p, a = 2 q (q - p) / p."""

    def a(lp: Array, lq: Array) -> Array:
        return 2 * (jnp.exp(2 * lq - lp) - jnp.exp(lq))

    return Row(_swapped(_chi2), a)


def _chi2(lp: Array, lq: Array) -> Array:
    d = lp - lq
    near = jnp.abs(d) < 1
    close = jnp.exp(lq) * jnp.expm1(jnp.where(near, d, 0)) ** 2
    return jnp.where(near, close, jnp.exp(lp + jnp.where(near, 0, d)) - 2 * jnp.exp(lp) + jnp.exp(lq))


def l2() -> Row:
    """(p - q)^2 / 2, a = q (q - p)."""
    return Row(
        lambda lp, lq: (jnp.exp(lp) - jnp.exp(lq)) ** 2 / 2,
        lambda lp, lq: jnp.exp(lq) * (jnp.exp(lq) - jnp.exp(lp)),
    )


def _swapped(phi: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda lp, lq: phi(lq, lp)


def _scaled(k: float | int, x: Array) -> Array:
    """k x, where a factor 0 leaves nothing of a logarithm that is -inf."""
    return k * x if k else jnp.zeros_like(x)


def _in_range(name: str, x: Any, fits: bool, expected: str) -> None:
    if isinstance(x, bool) or not isinstance(x, float | int) or not fits:
        raise ValueError(f"{name}: got {x!r}, expected a number {expected}")
