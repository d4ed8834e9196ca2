"""Simulation of the limit in depth in any number of dimensions, up to the blow-up.

    dx_{l,d} / dt = sum_{j <= l} P_{d,l,j} x_{d,j},    the hidden attention of `ssm.dynamics.layer`

evaluated as the recurrence that it is. Coordinates may change their sign here, so the tokens themselves move and not
their logarithms. Time is rescaled as in `ssm.dynamics.stepping`, with rate |dx / dt| / |x| in the norm over all tokens.

A large token can hold a later one where its velocity is a difference of large terms. That is stiff, and the rate is
then known to a few digits only. Where the explicit method takes too many steps an implicit one goes on, with theta
itself as its time and a tolerance that the rounding of such velocities allows.
"""

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import LSODA
from scipy.special import expit

from ssm.dynamics.checks import Floats, Numbers, as_numbers, as_times, softplus
from ssm.dynamics.stepping import Simulation, inside, states_at, steps, theta_of, time_of

_EXPLICIT, _STIFF = 1e-11, 1e-6  # relative tolerances
_SMALLEST = 1e-24  # relative to the largest coordinate at the start: what is smaller need not be exact
_EXPLICIT_STEPS = 600
_LARGEST = 1e60  # coordinates that are followed
_LAST_TIME = 1e4  # in theta: no float is so late
_LOG_WATCHED, _LOG_BLOWN = np.log(1e5), np.log(1e10)  # r between which a blow-up is told from a transient
_LEAST_GROWTH = 10.0  # of the configuration between them, with the square of which, or the cube, rates grow
_CLOSING = 100.0  # |S_Delta| |x| below which step sizes may still close and end an explosive growth


class TokenFlow(NamedTuple):
    """One configuration of L tokens in D dimensions.

    Attributes:
        start: tokens at t = 0, (L, D).
        matrix: the input-output matrix M, (D, D).
        s_delta: S_Delta, (D, D).
        a: (D,).
        bias: (D,).
    """

    start: Floats
    matrix: Floats
    s_delta: Floats
    a: Floats
    bias: Floats


class Step(NamedTuple):
    """A step of the integration.

    Attributes:
        old: theta = ln(1 + t / t0) before it.
        theta: behind it.
        tokens: behind it, (L, D).
        r: ln(rate (t0 + t)) behind it: how much the configuration changes while the time doubles.
        at: values of theta (T,) within the step -> tokens (T, L D).
    """

    old: float
    theta: float
    tokens: Floats
    r: float
    at: Callable[[Floats], Floats]


def simulate_tokens(
    x0: Numbers, matrix: Numbers, s_delta: Numbers, a: Numbers, times: Numbers, *, bias: Numbers | None = None
) -> Simulation:
    """Tokens of the continuous limit in any number of dimensions (arXiv 2410.03292); see the module. In float64.

    No theorem says when there is a blow-up. It is seen where the configuration changes 1e10 times faster than its time
    doubles and has grown at least tenfold since that was 1e5, with tokens so large that step sizes would have closed
    (|S_Delta| |x| > 100): so its time is known to 1e-10 of itself.

    Args:
        x0: tokens at t = 0, (L, D).
        matrix: the input-output matrix M = S_C^T S_B, (D, D).
        s_delta: S_Delta, (D, D), row d for the step size of channel d.
        a: minus the state matrices, (D,), above 0.
        times: (T,), at least 0, in any order.
        bias: inside the softplus, (D,); None is 0.

    Returns:
        Tokens (T, L, D) at these times, NaN at or past the blow-up, and the time of the blow-up, or None. One that is
        later than the last of the times is not looked for. Tokens beyond 1e60 are NaN, too.

    Raises:
        ValueError: an argument has another shape or range than stated.
        RuntimeError: the integration fails, as it may where large tokens hold others until times beyond 1e13 t0.

    Example:
        >>> import numpy as np
        >>> found = simulate_tokens([[1.0, 2.0]], -np.eye(2), np.zeros((2, 2)), np.ones(2), [0.0, 1.0])
        >>> found.tokens.round(4).tolist()  # x / sqrt(1 + 2 ln2 |x|^2 t)
        [[[1.0, 2.0]], [[0.3551, 0.7102]]]
    """
    flow, times = token_flow(x0, matrix, s_delta, a, bias), as_times(times)
    log_unit = -log_rate(flow.start, velocities(flow, flow.start))
    if np.isposinf(log_unit):
        return Simulation(times, np.tile(flow.start, (times.size, 1, 1)), None, flow.start)
    thetas = theta_of(times, log_unit)
    found = np.full((times.size, *flow.start.shape), np.nan)
    found[thetas == 0] = last = flow.start
    for step, blown in followed(flow, float(thetas.max())):
        now, last = inside(step.old, step.theta, thetas), step.tokens
        found[now] = step.at(thetas[now]).reshape(-1, *last.shape)
        if blown:
            return Simulation(times, found, time_of(step.theta, log_unit), last)
    return Simulation(times, found, None, last)


def token_flow(x0: Numbers, matrix: Numbers, s_delta: Numbers, a: Numbers, bias: Numbers | None = None) -> TokenFlow:
    """The arguments of `simulate_tokens`, checked.

    Args:
        x0: tokens at t = 0, (L, D).
        matrix: M, (D, D).
        s_delta: S_Delta, (D, D).
        a: (D,), above 0.
        bias: (D,); None is 0.

    Returns:
        The configuration.

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> token_flow([[1.0]], [[1.0]], [[0.0]], [0.0])
        Traceback (most recent call last):
        ValueError: a: got 0.0 among them, expected above 0
    """
    sizes: dict[str, int] = {}
    tokens = as_numbers("x0", x0, "L D", sizes)
    M, weights = as_numbers("matrix", matrix, "D D", sizes), as_numbers("s_delta", s_delta, "D D", sizes)
    rates = as_numbers("a", a, "D", sizes)
    if rates.min() <= 0:
        raise ValueError(f"a: got {rates.min()} among them, expected above 0")
    return TokenFlow(
        tokens, M, weights, rates, np.zeros(len(M)) if bias is None else as_numbers("bias", bias, "D", sizes)
    )


def velocities(flow: TokenFlow, x: Floats) -> Floats:
    """dx / dt of tokens (L, D).

    Example:
        >>> one = np.ones((1, 1))
        >>> velocities(TokenFlow(one, one, 0 * one, one[0], 0 * one[0]), one).round(4).tolist()
        [[0.6931]]
    """
    step = softplus(x @ flow.s_delta.T + flow.bias)
    with np.errstate(over="ignore"):
        decay = np.exp(-flow.a * step)
    read, velocity = x @ flow.matrix, np.empty_like(x)
    state = np.zeros((x.shape[1], x.shape[1]))  # of each channel: what tokens wrote, times themselves
    for token in range(len(x)):
        state = decay[token, :, None] * state + np.outer(step[token] * x[token], x[token])
        velocity[token] = state @ read[token]
    return velocity


def log_rate(x: Floats, velocity: Floats) -> float:
    """ln(|dx / dt| / |x|); -infinity where nothing moves.

    Example:
        >>> log_rate(np.ones((2, 2)), np.ones((2, 2))), log_rate(np.ones((2, 2)), np.zeros((2, 2)))
        (0.0, -inf)
    """
    moved, size = np.linalg.norm(velocity), np.linalg.norm(x)
    return float(np.log(moved / size)) if moved else -np.inf


def followed(flow: TokenFlow, last: float) -> Iterator[tuple[Step, bool]]:
    """Steps up to a theta, to a blow-up, or to tokens too large to be followed, and whether the step is a blow-up.

    Args:
        flow: the configuration; if nothing of it moves, there is no step.
        last: theta to be reached.

    Yields:
        The step, and whether the solution ends there.

    Raises:
        RuntimeError: the integration fails.

    Example:
        >>> one = np.ones((1, 1))
        >>> *_, (step, blown) = followed(TokenFlow(one, one, 0 * one, one[0], 0 * one[0]), 50.0)
        >>> blown, round(float(np.expm1(step.theta)), 6)  # x' = ln 2 x^3, in units of 1 / ln 2
        (True, 0.5)
    """
    watched, theta, closing = np.inf, 0.0, np.linalg.norm(flow.s_delta, 2)
    moves = np.isfinite(log_rate(flow.start, velocities(flow, flow.start)))
    for step in _steps(flow) if moves and last > 0 else ():
        theta, size = step.theta, float(np.linalg.norm(step.tokens))
        watched = np.inf if step.r < _LOG_WATCHED else min(watched, size)
        closed = closing == 0 or closing * size > _CLOSING
        blown = bool(step.r > _LOG_BLOWN and size > _LEAST_GROWTH * watched and closed)
        yield step, blown
        if blown or theta >= last or size > _LARGEST:
            return


def _steps(flow: TokenFlow) -> Iterator[Step]:
    """One step after another, explicit ones first."""
    for step in islice(_explicit(flow), _EXPLICIT_STEPS):
        yield step
    yield from _implicit(flow, step)


def _explicit(flow: TokenFlow) -> Iterator[Step]:
    start = log_rate(flow.start, velocities(flow, flow.start))

    def moving(tau: float, state: Floats) -> Floats:
        velocity = velocities(flow, x := state[1:].reshape(flow.start.shape))
        rate = log_rate(x, velocity)
        r = state[0] + rate - start
        speed = 0.0 if np.isneginf(rate) else expit(r) * np.exp(-rate)
        return np.concatenate([[expit(-r)], speed * velocity.ravel()])

    old = 0.0
    atol = np.concatenate([[_EXPLICIT], np.full(flow.start.size, _absolute(flow))])
    for solver in steps(moving, np.concatenate([[0.0], flow.start.ravel()]), atol, _EXPLICIT):
        x = solver.y[1:].reshape(flow.start.shape)
        r = solver.y[0] + log_rate(x, velocities(flow, x)) - start
        yield Step(old, solver.y[0], x, r, _rescaled(solver))
        old = solver.y[0]


def _implicit(flow: TokenFlow, before: Step) -> Iterator[Step]:
    start = log_rate(flow.start, velocities(flow, flow.start))

    def moving(theta: float, state: Floats) -> Floats:
        return (velocities(flow, state.reshape(flow.start.shape)) * np.exp(theta - start)).ravel()

    solver = LSODA(moving, before.theta, before.tokens.ravel(), _LAST_TIME, rtol=_STIFF, atol=_absolute(flow))
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # LSODA's words about a failure, which the message has too
            message = solver.step()
        if solver.status == "failed":
            raise RuntimeError(f"the integration fails at ln(1 + t / t0) = {solver.t}: {message}")
        x = solver.y.reshape(flow.start.shape)
        r = solver.t + log_rate(x, velocities(flow, x)) - start
        yield Step(solver.t_old, solver.t, x, r, _dense(solver))


def _rescaled(solver: Any) -> Callable[[Floats], Floats]:
    return lambda thetas: states_at(solver, thetas)[1:].T


def _dense(solver: Any) -> Callable[[Floats], Floats]:
    return lambda thetas: solver.dense_output()(thetas).T


def _absolute(flow: TokenFlow) -> float:
    return _SMALLEST * float(np.abs(flow.start).max())
