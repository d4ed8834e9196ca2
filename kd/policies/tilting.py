"""KL-regularised reinforcement learning as Bayesian inference, in closed form for a finite set of responses.

    J(pi) = E_pi r - beta KL(pi || ref)

has the optimum pi* = ref exp(r / beta) / Z: a posterior with prior ref and likelihood exp(r / beta). For every pi

    J(pi) = beta log Z - beta KL(pi || pi*),    r = beta log(pi* / ref) + beta log Z

so that maximising J is matching pi* by the reverse KL, and a policy is a reward (Korbacki et al., arXiv 2205.11275;
Rafailov et al., arXiv 2305.18290). Best of n, the best by r of n samples of ref, is another point of the trade-off:

    P(x) = ref(x | r(x)) (F(r(x))^n - F(below r(x))^n),    KL(P || ref) <= log n - (n - 1) / n

with F the distribution function of r under ref. The bound is met where no two responses share a reward and none has
much of the mass (Beirami et al., arXiv 2401.01879). Everything here is of exact tables (..., N), in logarithms.
"""

import math

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_floats, at_least_float32, check_count, check_number
from kd.divergences import present
from kd.rows import excess, times
from kd.typing import Array, Number


def tilted_optimum(log_reference: ArrayInput, reward: ArrayInput, *, beta: Number) -> Array:
    """log pi*; see the module.

    Args:
        log_reference: log probabilities of the N responses (..., N), normalised.
        reward: of each (..., N).
        beta: strength of the regularisation, above 0.

    Returns:
        (..., N), normalised.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi = jax.jit(tilted_optimum)(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([3.0, 1.0])), beta=1.0)
        >>> jnp.exp(log_pi).round(4).tolist()
        [0.75, 0.25]
    """
    return jax.nn.log_softmax(_tilted(log_reference, reward, beta), axis=-1)


def tilted_value(log_reference: ArrayInput, reward: ArrayInput, *, beta: Number) -> Array:
    """beta log Z, the largest J; see the module.

    Args:
        log_reference: log probabilities of the N responses (..., N), normalised.
        reward: of each (..., N).
        beta: strength of the regularisation, above 0.

    Returns:
        (...).

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> print(f"{tilted_value(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, 1.0]), beta=0.01):.4f}")
        0.9931
    """
    return beta * jax.nn.logsumexp(_tilted(log_reference, reward, beta), axis=-1)


def regularised_reward(log_pi: ArrayInput, log_reference: ArrayInput, reward: ArrayInput, *, beta: Number) -> Array:
    """J(pi) = E_pi r - beta KL(pi || ref); see the module.

    Args:
        log_pi: log probabilities of the N responses (..., N) under the policy, normalised.
        log_reference: under the reference (..., N), normalised.
        reward: of each (..., N).
        beta: strength of the regularisation, at least 0.

    Returns:
        (...), with gradients to all.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi = jnp.log(jnp.array([0.5, 0.5]))
        >>> float(regularised_reward(log_pi, log_pi, jnp.array([0.0, 1.0]), beta=0.1))
        0.5
    """
    check_number("beta", beta, at_least=0)
    log_pi, log_reference, reward = (
        at_least_float32(x) for x in as_floats("... N", log_pi=log_pi, log_reference=log_reference, reward=reward)
    )
    penalty = times(jnp.asarray(beta, log_pi.dtype), _kl(log_pi, log_reference))
    return jnp.sum(times(jnp.exp(log_pi), reward), axis=-1) - penalty


def best_of_n(log_reference: ArrayInput, reward: ArrayInput, *, n: int) -> Array:
    """log P of best of n; equal rewards are drawn as the reference draws them. See the module.

    Args:
        log_reference: log probabilities of the N responses (..., N), normalised.
        reward: of each (..., N).
        n: samples.

    Returns:
        (..., N), normalised, without gradient. Memory N^2.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> best_of_two = jax.jit(lambda log_p, r: jnp.exp(best_of_n(log_p, r, n=2)))
        >>> best_of_two(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, 1.0])).round(4).tolist()
        [0.25, 0.75]
    """
    log_reference, reward = (
        at_least_float32(x) for x in as_floats("... N", log_reference=log_reference, reward=reward)
    )
    check_count("n", n)
    log_reference, reward = jax.lax.stop_gradient((log_reference, reward))

    def log_mass(which: Array) -> Array:
        return jax.nn.logsumexp(jnp.where(which, log_reference[..., None, :], -jnp.inf), axis=-1)

    of_others, own = reward[..., None, :], reward[..., :, None]
    up_to, level = log_mass(of_others <= own), log_mass(of_others == own)
    # F^n - (F - level)^n, without cancellation where the level has little of the mass
    rise = n * up_to + jnp.log(-jnp.expm1(n * jnp.log1p(-jnp.exp(jnp.minimum(level - up_to, 0)))))
    return jnp.where(log_reference > -jnp.inf, log_reference - level + rise, -jnp.inf)


def best_of_n_bound(n: int) -> float:
    """log n - (n - 1) / n, what KL(best of n || reference) cannot exceed; see the module.

    Args:
        n: samples.

    Returns:
        The bound.

    Raises:
        ValueError: n is no integer of at least 1.

    Example:
        >>> [round(best_of_n_bound(n), 4) for n in (1, 2, 16)]
        [0.0, 0.1931, 1.8351]
    """
    check_count("n", n)
    return math.log(n) - (n - 1) / n


def _tilted(log_reference: ArrayInput, reward: ArrayInput, beta: Number) -> Array:
    check_number("beta", beta, above=0)
    log_reference, reward = (
        at_least_float32(x) for x in as_floats("... N", log_reference=log_reference, reward=reward)
    )
    return log_reference + reward / beta


def _kl(log_a: Array, log_b: Array) -> Array:
    return jnp.sum(present(excess, log_a, log_b), axis=-1)
