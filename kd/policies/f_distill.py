"""Weights of a score difference that make distribution matching that of any f-divergence (f-distill, arXiv 2502.15681).

A generator that is trained by the difference of two scores follows the reverse KL; weighted sample by sample with

    h(r) = r^2 f''(r),    r = p / q = teacher / student,    D = E_q f(r)

it follows D. In terms of the generators g of `kd.generators`, where D = E_p g(u) and u = 1 / r, the same weight is
h = u g''(u), the derivative of g' by log u:

    reverse_kl      1                jensen_shannon      r / (1 + r)       jeffreys     1 + r
    forward_kl      r                softened_kl         1 / (1 + r)       chi2_qp      2 / r (Neyman)
    chi2_pq         2 r^2            squared_hellinger   sqrt(r) / 2

r is a discriminator's, e^logit, and is clipped. What the released code does with r over the noise levels is read as
division by its mean in each of ten equal parts of the time; that reading is not verified.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, as_floats, at_least_float32, check_count, check_number, known
from kd.divergences import reduce_tokens
from kd.generators import Generator, as_generator
from kd.typing import Array, Number

LARGEST_LOGIT = 10.0


def f_distill_weights(
    logit: ArrayInput,
    *,
    generator: str | Generator = "forward_kl",
    smallest: Number = 0.1,
    largest: Number = 20.0,
    normalize: bool = True,
    mask: ArrayInput = None,
) -> Array:
    """h(r) of every sample; see the module.

    Args:
        logit: log r (B), clipped to -10 and 10.
        generator: of the divergence, a name in `GENERATORS` or one's own; total variation has no second derivative.
        smallest: r is not below this.
        largest: nor above this, which is at least the smallest.
        normalize: whether the weights are divided by their mean, so that the step keeps its size.
        mask: (B), true at samples that count; the others have weight 0.

    Returns:
        (B), without gradient.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> logit = jnp.log(jnp.array([0.5, 1.0, 3.0]))
        >>> [f"{x:.2f}" for x in f_distill_weights(logit, generator="jensen_shannon", normalize=False)]
        ['0.33', '0.50', '0.75']
    """
    as_floats("B", logit=logit)
    check_number("smallest", smallest, above=0)
    check_number("largest", largest, at_least=float(smallest) if known(smallest) else None, above=0)
    if generator == "total_variation":
        raise ValueError("generator: got total_variation, expected one with a second derivative")
    derivative = as_generator(generator).derivative
    mask, (logit,) = as_counted(mask, logit=logit)
    log_r = jnp.clip(jax.lax.stop_gradient(logit), -LARGEST_LOGIT, LARGEST_LOGIT)
    log_r = jnp.clip(log_r, jnp.log(smallest), jnp.log(largest))
    h = jax.vmap(jax.grad(derivative))(-log_r)
    h = h if mask is None else jnp.where(mask, h, 0)
    if not normalize:
        return h
    total, number = jnp.sum(h), h.size if mask is None else jnp.sum(mask)
    return h * jnp.where(total > 0, number / jnp.where(total > 0, total, 1), 0)


def balance_over_time(logit: ArrayInput, times: ArrayInput, *, parts: int = 10, mask: ArrayInput = None) -> Array:
    """log r less the logarithm of the mean of r at about the same time, so that no noise level dominates.

    Args:
        logit: log r (B), clipped to -10 and 10.
        times: in [0, 1] (B).
        parts: of the time.
        mask: (B), true at samples that count; the others give 0 and are in no mean.

    Returns:
        (B), without gradient.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> logit, times = jnp.log(jnp.array([1.0, 3.0, 5.0])), jnp.array([0.01, 0.02, 0.9])
        >>> jnp.exp(jax.jit(balance_over_time)(logit, times)).round(4).tolist()
        [0.5, 1.5, 1.0]
    """
    as_floats("B", logit=logit, times=times)
    check_count("parts", parts)
    mask, (logit, times) = as_counted(mask, logit=logit, times=times)
    counted = jnp.ones(logit.shape, bool) if mask is None else mask
    r = jnp.exp(jnp.clip(jax.lax.stop_gradient(logit), -LARGEST_LOGIT, LARGEST_LOGIT))
    part = jnp.clip((times * parts).astype(jnp.int32), 0, parts - 1)
    total, number = (jax.ops.segment_sum(jnp.where(counted, x, 0), part, parts) for x in (r, jnp.ones_like(r)))
    return jnp.where(counted, jnp.log(r * number[part] / jnp.where(counted, total[part], 1)), 0)


def f_distill_loss(x: ArrayInput, difference: ArrayInput, weights: ArrayInput, *, mask: ArrayInput = None) -> Array:
    """mean over the batch of |x - fixed(x - w difference)|^2 / 2, whose gradient by x is w difference / B.

    Args:
        x: what the student generates (B, ...).
        difference: score of the student less that of the teacher at noised x (B, ...), held fixed.
        weights: (B); see `f_distill_weights`.
        mask: (B), true at samples that count.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> x, weights = jnp.ones((2, 1)), jnp.array([1.0, 3.0])
        >>> jax.jit(jax.grad(f_distill_loss))(x, jnp.full((2, 1), 2.0), weights).tolist()
        [[1.0], [3.0]]
    """
    x, difference = (at_least_float32(z) for z in as_floats("B ...", x=x, difference=difference))
    (weights,) = as_floats("B", weights=weights)
    if weights.shape != x.shape[:1]:
        raise ValueError(f"weights: got {weights.dtype}{list(weights.shape)}, expected one number for each of {len(x)}")
    mask, (weights,) = as_counted(mask, weights=weights)

    def of_sample(z: Array) -> Array:
        return z.reshape((-1,) + (1,) * (x.ndim - 1))

    if mask is not None:
        x, difference = (jnp.where(of_sample(mask), z, 0) for z in (x, difference))
    target = jax.lax.stop_gradient(x - of_sample(weights) * difference)
    return reduce_tokens(jnp.sum((x - target).reshape(len(x), -1) ** 2, axis=1) / 2, mask)
