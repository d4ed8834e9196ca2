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


def times(decay: tuple[Array, ...], state: tuple[Array, ...]) -> tuple[Array, ...]:
    """a h of numbers that are given as (real,) or (real, imaginary).

    Example:
        >>> import jax.numpy as jnp
        >>> zero, one, two = (jnp.array(x) for x in (0.0, 1.0, 2.0))
        >>> [float(x) for x in times((zero, two), (two, one))], [float(x) for x in times((two,), (two, one))]
        ([-2.0, 4.0], [4.0, 2.0])
    """
    if len(decay) == 1:
        return tuple(decay[0] * part for part in state)
    (a, b), (x, y) = decay, state
    return a * x - b * y, a * y + b * x
