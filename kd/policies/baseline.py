"""A baseline of recent rewards, as f-DPG has it: the mean over the last 1,024 samples (arXiv 2302.08215)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, as_floats, check_count
from kd.typing import Array


class BaselineState(NamedTuple):
    """The last values, in a ring.

    Attributes:
        values: (size,).
        seen: how many there have been.
    """

    values: Array
    seen: Array


def baseline_start(size: int = 1024) -> BaselineState:
    """The state before the first sample.

    Example:
        >>> float(baseline_value(baseline_start()))
        0.0
    """
    check_count("size", size)
    return BaselineState(jnp.zeros(size), jnp.zeros((), jnp.int32))


def baseline_update(state: BaselineState, values: ArrayInput, *, mask: ArrayInput = None) -> BaselineState:
    """The state after some samples. To leave a gradient without bias, take the baseline before its own samples come in.

    Args:
        state: before.
        values: of the samples (B), for example `f_dpg_cost`; at most as many as the ring holds.
        mask: (B), true at samples that count.

    Returns:
        The new state.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> state = jax.jit(baseline_update)(baseline_start(2), jnp.array([9.0, 1.0]))
        >>> state.values.tolist(), int(state.seen)
        ([9.0, 1.0], 2)
    """
    as_floats("B", values=values)
    counted, (values,) = as_counted(mask, values=values)
    size = len(state.values)
    check_count("samples of values", len(values), at_most=size)
    counted = jnp.ones(values.shape, bool) if counted is None else counted
    place = (state.seen + jnp.cumsum(counted) - 1) % size
    kept = state.values.at[jnp.where(counted, place, size)].set(jax.lax.stop_gradient(values), mode="drop")
    return BaselineState(kept, state.seen + jnp.sum(counted, dtype=state.seen.dtype))


def baseline_value(state: BaselineState) -> Array:
    """The mean of the values that are there, and 0 before there are any.

    Example:
        >>> float(baseline_value(BaselineState(jnp.array([1.0, 3.0, 0.0, 0.0]), jnp.array(2))))
        2.0
    """
    number = jnp.minimum(state.seen, len(state.values))
    there = jnp.arange(len(state.values)) < number
    return jnp.sum(jnp.where(there, state.values, 0)) / jnp.maximum(number, 1)
