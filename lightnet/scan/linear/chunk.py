"""What a token and a stretch of the recurrence h_t = a_t h_{t-1} + b_t do to the state: h -> decay h + state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from lightnet.scan.kernels import KEEP, REAL
from lightnet.typing import Array

Parts = tuple[Array, ...]  # a real array, or the real and the imaginary part of a complex one


class LinearSummary(NamedTuple):
    """Of a stretch: the product of its decays, and the state behind it when it begins from 0; both (B, D)."""

    decay: Array
    state: Array


def combine(earlier: LinearSummary, later: LinearSummary) -> LinearSummary:
    """The summary of two stretches, one behind the other: (a, h) (a', h') = (a a', a' h + h').

    Example:
        >>> half = jnp.array(0.5)
        >>> [float(x) for x in combine(LinearSummary(half, 2 * half), LinearSummary(half, 4 * half))]
        [0.25, 2.5]
    """
    return LinearSummary(earlier.decay * later.decay, later.decay * earlier.state + later.state)


def enter(summary: LinearSummary, state: Array) -> Array:
    """The state behind a stretch that `state` enters."""
    return summary.decay * state + summary.state


def step(decay: Parts, value: Parts, state: Parts, flag: Any = None, *, late: bool = False) -> tuple[Parts, Parts]:
    """One token.

    Args:
        decay: a_t.
        value: b_t.
        state: before the token; with more parts than these if it alone is complex.
        flag: both flags of the token as one number, see `flags_of`; None if all tokens are alike.
        late: multiply by a_t after the output, as the adjoint does; see `lightnet.scan.linear.xla.scan`.

    Returns:
        The state behind the token, and its output.

    Example:
        >>> two, three = ((jnp.array(x),) for x in (2.0, 3.0))
        >>> [float(x[0]) for x in step(two, three, three)], [float(x[0]) for x in step(two, three, three, late=True)]
        ([9.0, 9.0], [12.0, 6.0])
    """
    if late:
        output = _plus(state, value)
        return _where(flag, REAL, _where(flag, KEEP, times(decay, output)), output), output
    output = _where(flag, REAL, _plus(_where(flag, KEEP, times(decay, state)), value), state)
    return output, output


def times(decay: Parts, state: Parts) -> Parts:
    """a h of numbers that are given as (real,) or (real, imaginary).

    Example:
        >>> zero, one, two = (jnp.array(x) for x in (0.0, 1.0, 2.0))
        >>> [float(x) for x in times((zero, two), (two, one))], [float(x) for x in times((two,), (two, one))]
        ([-2.0, 4.0], [4.0, 2.0])
    """
    if len(decay) == 1:
        return tuple(decay[0] * part for part in state)
    (a, b), (x, y) = decay, state
    return a * x - b * y, a * y + b * x


def parts_of(x: Array) -> Parts:
    """Of an array, as the kernels take it.

    Example:
        >>> len(parts_of(jnp.ones(1))), len(parts_of(jnp.ones(1, complex)))
        (1, 2)
    """
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def whole(x: Sequence[Array]) -> Array:
    """The array of which these are the parts.

    Example:
        >>> whole((jnp.ones(1), jnp.ones(1))).tolist()
        [(1+1j)]
    """
    return lax.complex(*x) if len(x) == 2 else x[0]


def _where(flag: Any, bit: int, value: Parts, other: Parts | None = None) -> Parts:
    """The value where the flag has the bit, or there is no flag; else the other one, or 0."""
    if flag is None:
        return value
    return tuple(
        jnp.where((flag & bit) != 0, x, jnp.zeros_like(x) if other is None else other[p]) for p, x in enumerate(value)
    )


def _plus(state: Parts, value: Parts) -> Parts:
    return tuple(h + value[p] if p < len(value) else h for p, h in enumerate(state))
