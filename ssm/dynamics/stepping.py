"""Integration in rescaled time, which the limits of this package share.

The tokens move in a time t that may have to reach 1e30, or that may end at a finite T*, which no step must overshoot.
With t0 = 1 / rate(0), the inverse of the rate at which the configuration changes at the start, the integration advances

    d tau = (1 / (t0 + t) + rate) dt,    theta = ln(1 + t / t0)  carried as a state

so that with r = ln(rate (t0 + t)) and the logistic function sigma

    d theta / d tau = sigma(-r)  and  what moves with the rate advances by  sigma(r):

everything is bounded by 1. Where the configuration moves little, tau is ln t; where it blows up, theta tends to a limit
as e^-(2 tau) or faster, and T* = t0 (e^theta - 1). The steps are those of `scipy.integrate.DOP853`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import DOP853

from ssm.dynamics.checks import Floats

RELATIVE = 1e-13
_MAX_STEP = 5.0  # in tau: no change of regime lies wholly between the stages of a step
_MAX_STEPS = 200_000
_HALVINGS = 60


class Simulation(NamedTuple):
    """Tokens at the times asked for, and when they cease to exist.

    Attributes:
        times: (T,), as given.
        tokens: (T, L) in one dimension, (T, L, D) in more; NaN at times at or past the blow-up.
        blow_up_time: T* of the solution, whatever the times; None where it exists for all time. A T* that is too large
            for a float64 is infinity.
        last_tokens: (L,) or (L, D), where the integration ended: at the last of the times, or so close to T* that what
            is left of it is lost in its rounding.
    """

    times: Floats
    tokens: Floats
    blow_up_time: float | None
    last_tokens: Floats


def steps(
    rates: Callable[[float, Floats], Floats], start: Floats, atol: float | Floats = RELATIVE, rtol: float = RELATIVE
) -> Iterator[Any]:
    """Step after step in tau, without an end.

    Args:
        rates: (tau, state) -> d state / d tau.
        start: state at tau = 0.
        atol: absolute tolerance of each step.
        rtol: relative tolerance of each step.

    Yields:
        The solver behind each step, with `t_old`, `t`, `y` and `dense_output()`.

    Raises:
        RuntimeError: the solver fails, or takes so many steps that it will not end.

    Example:
        >>> bool(next(steps(lambda tau, y: -y, np.ones(1))).t > 0)
        True
    """
    solver = DOP853(rates, 0.0, start, np.inf, rtol=rtol, atol=atol, max_step=_MAX_STEP)
    for _ in range(_MAX_STEPS):
        message = solver.step()
        if solver.status == "failed":
            raise RuntimeError(f"the integration fails at tau = {solver.t}: {message}")
        yield solver
    raise RuntimeError(f"the integration takes more than {_MAX_STEPS} steps, at tau = {solver.t}")


def states_at(solver: Any, thetas: Floats) -> Floats:
    """States of the last step at values of theta, which is the state's first entry and rises along it.

    Args:
        solver: behind the step.
        thetas: (T,) wanted, all of them within the step.

    Returns:
        (entries, T).

    Example:
        >>> solver = next(steps(lambda tau, y: np.array([1.0, -y[1]]), np.array([0.0, 1.0])))
        >>> theta = solver.y[0] / 3
        >>> bool(abs(states_at(solver, np.array([theta]))[1, 0] - np.exp(-theta)) < 1e-12)
        True
    """
    if not thetas.size:
        return np.empty((solver.y.size, 0))
    dense = solver.dense_output()
    low, high = np.full(thetas.shape, solver.t_old), np.full(thetas.shape, solver.t)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        before = dense(middle)[0] < thetas
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return dense(high)


def inside(old: float, new: float, thetas: Floats) -> np.ndarray:
    """Which of the thetas (T,) lie in (old, new].

    Example:
        >>> inside(0.0, 1.0, np.array([0.0, 0.5, 1.0, 2.0])).tolist()
        [False, True, True, False]
    """
    return (old < thetas) & (thetas <= new)


def theta_of(times: Floats, log_start: float) -> Floats:
    """theta = ln(1 + t / t0) of times (T,), with ln t0.

    Example:
        >>> theta_of(np.array([0.0, 1.0]), 0.0).round(4).tolist()
        [0.0, 0.6931]
    """
    with np.errstate(divide="ignore"):
        return np.logaddexp(0.0, np.log(times) - log_start)


def time_of(theta: float, log_start: float) -> float:
    """The time t = t0 (e^theta - 1), infinity where it is too large for a float.

    Example:
        >>> round(time_of(float(np.log(2)), 0.0), 12)
        1.0
    """
    with np.errstate(over="ignore"):
        return float(np.exp(log_time(theta, log_start)))


def log_time(theta: float, log_start: float) -> float:
    """ln t = ln t0 + ln(e^theta - 1), also where t overflows.

    Example:
        >>> log_time(2000.0, 1.0)
        2001.0
    """
    return float(log_start + theta + np.log(-np.expm1(-theta))) if theta > 0 else -np.inf
