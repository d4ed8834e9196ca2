"""Anchors to a reference policy by an f-divergence of its own stored samples (DPH-RL, arXiv 2509.07430).

Reinforcement learning goes on where the base model fails; where it already is right (`mastered`) nothing is reinforced
and the policy is held near the base model, on the responses that the base model gave. Because those do not move with
the policy, the mean of f(u), u = pi / reference, estimates D_f(pi || reference) without bias and may be differentiated
as it stands; of the policy's own samples it may not. f is taken with the slope that makes it at least 0 everywhere,
f(u) - f'(1) (u - 1), which changes neither the divergence nor, in expectation, its gradient:

    forward_kl       u - 1 - log u                              weights 0.01 to 0.05
    jensen_shannon   u log u - (u + 1) log((u + 1) / 2)         weights 0.05 to 0.2
    alpha(0.2)       see `kd.generators`                        weights 0.01 to 0.05

Of the tokens of a sequence, at each state that the reference visited.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, check_number
from kd.divergences import LARGEST_LOG_RATIO
from kd.generators import Generator, as_generator
from kd.rows import excess
from kd.typing import Array, Number


def dph_anchor(
    log_pi: ArrayInput,
    log_reference: ArrayInput,
    *,
    generator: str | Generator = "forward_kl",
    mask: ArrayInput = None,
    largest_log_ratio: Number = LARGEST_LOG_RATIO,
) -> Array:
    """f(u) - f'(1) (u - 1) of every stored token, at least 0 but for rounding; see the module.

    Args:
        log_pi: log probabilities of the reference's tokens (...) under the policy.
        log_reference: under the reference (...), stored with them; held fixed.
        generator: a name in `GENERATORS`, or one's own.
        mask: (...), true at what counts; the rest gives 0, with gradient 0.
        largest_log_ratio: clips log u on both sides; outside of it there is no gradient.

    Returns:
        (...), float32 at least.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi, log_reference = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
        >>> print(f"{jax.jit(dph_anchor)(log_pi, log_reference).mean():.4f}")
        0.1438
    """
    f = _centred(generator)
    check_number("largest_log_ratio", largest_log_ratio, above=0)
    mask, (log_pi, log_reference) = as_counted(mask, log_pi=log_pi, log_reference=log_reference)
    x = jnp.clip(log_pi - jax.lax.stop_gradient(log_reference), -largest_log_ratio, largest_log_ratio)
    return f(x)


def _centred(generator: str | Generator) -> Callable[[Array], Array]:
    """f(u) - f'(1) (u - 1) as a function of log u."""
    # without the cancellation near u = 1, where the policy starts
    if generator == "forward_kl":
        return lambda x: excess(jnp.zeros_like(x), x)
    if generator == "reverse_kl":
        return lambda x: excess(x, jnp.zeros_like(x))
    f, derivative = as_generator(generator)
    return lambda x: f(x) - derivative(jnp.zeros_like(x)) * jnp.expm1(x)
