"""Hidden Markov models of symbols, fitted by Baum and Welch's expectation maximisation.

    P(x_1..x_L) = sum_{z_1..z_L} pi(z_1) E(x_1 | z_1) prod_t T(z_t | z_{t-1}) E(x_t | z_t)

by the forward recursion. The expected counts of the E step are the derivatives of the log-likelihood with respect to
the logarithms of the parameters, d log P / d log T(j | i) = E[n(i -> j) | x], so the backward recursion is left to
automatic differentiation.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments.sources.dirichlet import flat_laws


class HiddenMarkov(NamedTuple):
    """Logarithms of the parameters, S states and A symbols.

    Attributes:
        initial: log pi (S,).
        transition: log T (S, S), from row to column.
        emission: log E (S, A).
    """

    initial: jax.Array
    transition: jax.Array
    emission: jax.Array


def random_model(key: jax.Array, states: int, alphabet: int) -> HiddenMarkov:
    """All laws from Dir(1, ..., 1).

    Args:
        key: JAX random key.
        states: S.
        alphabet: A.

    Returns:
        The model.

    Example:
        >>> random_model(jax.random.key(0), 3, 2).emission.shape
        (3, 2)
    """
    keys = jax.random.split(key, 3)
    shapes = ((states,), (states, states), (states, alphabet))
    return HiddenMarkov(*(jnp.log(flat_laws(key, shape)) for key, shape in zip(keys, shapes, strict=True)))


def log_likelihood(model: HiddenMarkov, symbols: jax.Array) -> jax.Array:
    """log P of each row.

    Args:
        model: parameters.
        symbols: (B, L) integers below A.

    Returns:
        (B,) nats.

    Example:
        >>> fair = HiddenMarkov(jnp.zeros(1), jnp.zeros((1, 1)), jnp.log(jnp.full((1, 2), 0.5)))
        >>> round(float(log_likelihood(fair, jnp.array([[0, 1, 1]]))[0]), 4)
        -2.0794
    """
    transition, emission = jnp.exp(model.transition), jnp.exp(model.emission)

    def step(state: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        joint = state * emission[:, seen].T
        total = joint.sum(axis=1, keepdims=True)
        return (joint / total) @ transition, jnp.log(total[:, 0])

    start = jnp.broadcast_to(jnp.exp(model.initial), (len(symbols), len(model.initial)))
    return lax.scan(step, start, symbols.T)[1].sum(axis=0)


def expected_counts(model: HiddenMarkov, symbols: jax.Array) -> tuple[HiddenMarkov, jax.Array]:
    """The E step: how often each parameter is used, in expectation given the symbols, summed over rows.

    Args:
        model: parameters.
        symbols: (B, L).

    Returns:
        Counts in the places of the parameters, and the total log-likelihood.
    """
    total, counts = jax.value_and_grad(lambda model: log_likelihood(model, symbols).sum())(model)
    return counts, total


@partial(jax.jit, static_argnames="iterations")
def baum_welch(
    model: HiddenMarkov, symbols: jax.Array, iterations: int, pseudo_count: float = 0.1
) -> tuple[HiddenMarkov, jax.Array]:
    """Expectation maximisation: the laws become the expected counts, divided by their sums.

    Args:
        model: to begin with.
        symbols: (B, L).
        iterations: how many.
        pseudo_count: added to every count, so that nothing becomes impossible; 0 maximises the likelihood.

    Returns:
        The model, and the log-likelihood before each iteration (iterations,).
    """

    def improve(model: HiddenMarkov, _: None) -> tuple[HiddenMarkov, jax.Array]:
        counts, total = expected_counts(model, symbols)
        # Rounding may leave a count slightly below 0.
        raised = jax.tree.map(lambda n: jnp.maximum(n, 0) + pseudo_count, counts)
        return jax.tree.map(lambda n: jnp.log(n / n.sum(axis=-1, keepdims=True)), raised), total

    return lax.scan(improve, model, length=iterations)
