"""What a stretch of the recurrence h_t = a_t h_{t-1} + b_t does to the state: h -> decay h + state."""

from typing import NamedTuple

from lightnet.typing import Array


class LinearSummary(NamedTuple):
    """Of a stretch: the product of its decays, and the state behind it when it begins from 0; both (B, D)."""

    decay: Array
    state: Array


def combine(earlier: LinearSummary, later: LinearSummary) -> LinearSummary:
    """The summary of two stretches, one behind the other: (a, h) (a', h') = (a a', a' h + h').

    Example:
        >>> import jax.numpy as jnp
        >>> half = jnp.array(0.5)
        >>> [float(x) for x in combine(LinearSummary(half, 2 * half), LinearSummary(half, 4 * half))]
        [0.25, 2.5]
    """
    return LinearSummary(earlier.decay * later.decay, later.decay * earlier.state + later.state)


def enter(summary: LinearSummary, state: Array) -> Array:
    """The state behind a stretch that `state` enters."""
    return summary.decay * state + summary.state
