"""Weights and temperatures that follow the epochs, and all schedules as one kind of object.

What is linear is optax's. A training loop that knows `Schedule` alone can follow any of them: it keeps the state with
its own, calls `update(state, metrics)` after each step and asks `value(state)` before the next.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from kd.adaptive import taid_start, taid_update
from kd.checks import check_count, check_number
from kd.sequences.gkd import distillm_start, distillm_update
from kd.typing import Array, Number


class Schedule(NamedTuple):
    """A number that a training follows.

    Attributes:
        start: the state before the first step, of arrays.
        update: (state, metrics) -> the state after a step; pure, and to be compiled. Metrics that it does not know, or
            that a step does not have, leave it as it is.
        value: state -> the number that the next step takes.
    """

    start: Any
    update: Callable[[Any, Mapping[str, Number]], Any]
    value: Callable[[Any], Array]


def of_step(f: Callable[[Array], Array]) -> Schedule:
    """A schedule that follows `step`, the number of steps done, or whatever else stands there, as `dkd_warmup` epochs.

    Args:
        f: step -> number.

    Returns:
        The schedule, at step 0.

    Example:
        >>> schedule = of_step(dkd_warmup)
        >>> float(schedule.value(schedule.update(schedule.start, {"step": 5})))
        0.25
    """

    def update(state: Array, metrics: Mapping[str, Number]) -> Array:
        return jnp.asarray(metrics.get("step", state), jnp.float32)

    return Schedule(jnp.zeros((), jnp.float32), update, f)


def taid_schedule(steps: int, *, start: Number = 0.4, **args: Number) -> Schedule:
    """TAID's interpolation, which follows `loss` and `step`; see `kd.adaptive`.

    Args:
        steps: of the whole training.
        start: lambda at the start.
        **args: see `taid_update`.

    Returns:
        The schedule.

    Example:
        >>> schedule = taid_schedule(100)
        >>> state = schedule.update(schedule.start, {"loss": 2.0, "step": 50})
        >>> print(f"{schedule.value(state):.2f}")
        0.70
    """

    def update(state: Any, metrics: Mapping[str, Number]) -> Any:
        if "loss" not in metrics or "step" not in metrics:
            return state
        return taid_update(state, metrics["loss"], metrics["step"], steps=steps, start=start, **args)

    return Schedule(taid_start(start), update, lambda state: state.interpolation)


def distillm_schedule(*, start: Number = 0.0, **args: Number) -> Schedule:
    """DistiLLM's fraction of the student's own sequences, which follows `validation_loss`; see `kd.sequences.gkd`.

    Args:
        start: the fraction at the start.
        **args: see `distillm_update`.

    Returns:
        The schedule.

    Example:
        >>> schedule, state = distillm_schedule(), distillm_schedule().start
        >>> for metrics in ({"validation_loss": 1.0}, {"loss": 0.9}, {"validation_loss": 1.2}):
        ...     state = schedule.update(state, metrics)
        >>> print(f"{schedule.value(state):.1f}")
        0.1
    """

    def update(state: Any, metrics: Mapping[str, Number]) -> Any:
        return distillm_update(state, metrics["validation_loss"], **args) if "validation_loss" in metrics else state

    return Schedule(distillm_start(start), update, lambda state: state.fraction)


def dkd_warmup(epoch: Number, *, epochs: int = 20) -> Array:
    """Weight of the teacher in DKD's first epochs: min(epoch / epochs, 1).

    Args:
        epoch: from 0.
        epochs: after which it is 1.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> float(dkd_warmup(5)), float(dkd_warmup(40))
        (0.25, 1.0)
    """
    return _line(epoch, 0.0, 1.0, epochs)


def mdcs_weight(epoch: Number, *, largest: Number = 0.6, epochs: int = 20) -> Array:
    """Weight of MDCS's consistency: largest min(epoch / epochs, 1).

    Args:
        epoch: from 0.
        largest: what it ends at.
        epochs: after which it is that.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> print(f"{mdcs_weight(10):.2f}")
        0.30
    """
    return _line(epoch, 0.0, largest, epochs)


def temperature_anneal(epoch: Number, *, start: Number, epochs: int) -> Array:
    """A temperature that falls to 1 in the last epoch, as in SinKD: start + (1 - start) epoch / (epochs - 1).

    Args:
        epoch: from 0 to epochs - 1.
        start: the temperature of the first epoch.
        epochs: of the training, at least 2.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> [float(temperature_anneal(epoch, start=4.0, epochs=3)) for epoch in range(3)]
        [4.0, 2.5, 1.0]
    """
    check_number("start", start, above=0)
    check_count("epochs", epochs, at_least=2)
    return _line(epoch, start, 1.0, epochs - 1)


def _line(epoch: Number, start: Number, end: Number, epochs: int) -> Array:
    check_number("epoch", epoch, at_least=0)
    check_count("epochs", epochs)
    return jnp.asarray(optax.linear_schedule(start, end, epochs)(jnp.asarray(epoch, jnp.float32)))
