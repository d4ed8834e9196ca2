"""Simulation of the limit in depth in one dimension, up to the blow-up; see `ssm.dynamics.flow` for the equations."""

import numpy as np

from ssm.dynamics.checks import Floats, Numbers, as_number, as_numbers, as_times, log_softplus
from ssm.dynamics.flow import Flow, flow_of, rates
from ssm.dynamics.stepping import Simulation, inside, log_time, states_at, steps, theta_of, time_of

_LARGEST_FACTOR = 700.0  # in logarithms: what a float64 holds
_LOG_NEGLIGIBLE = float(np.log(1e-14))  # what is left of the time up to a blow-up, relative to it


def simulate(
    x0: Numbers, mu: Numbers, s_delta: Numbers, a: Numbers, times: Numbers, *, bias: Numbers = 0.0
) -> Simulation:
    """Tokens of the continuous limit in one dimension.

    dx_l / dt = mu x_l sum_{j <= l} x_j^2 D_j exp(-a sum_{k = j+1..l} D_k),    D_j = ln(1 + e^(s_delta x_j + bias))

    (one-dimensional case of arXiv 2410.03292, of which the abstract was read, not the theorems). In float64. For mu > 0
    the solution ends at a finite time T* exactly if s_delta x >= 0 for some token that is not 0 (ours): then
    |x|' >= mu ln(1 + e^bias) |x|^3, so that T* lies at most 1 / (2 mu ln(1 + e^bias) x^2) ahead, and the integration
    ends where that is negligible; if there is none, all rates are bounded.

    Args:
        x0: tokens at t = 0, (L,); zeros stay zero.
        mu: the input-output weight S_C S_B, of any sign; with 0 nothing moves.
        s_delta: the step-size weight S_Delta, of any sign, or 0.
        a: minus the state matrix, above 0.
        times: (T,), at least 0, in any order; 1e30 is no problem.
        bias: inside the softplus.

    Returns:
        Tokens (T, L) at these times, NaN at or past the blow-up, and the time of the blow-up or None.

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> found = simulate([-0.5, -0.3, 0.6, -0.4, 0.2], mu=1.0, s_delta=1.0, a=1.0, times=[0.5, 2.0])
        >>> found.tokens.round(4).tolist(), round(found.blow_up_time, 4)
        ([[-0.5321, -0.3193, 0.7919, -0.4973, 0.2244], [nan, nan, nan, nan, nan]], 1.0117)
    """
    tokens = as_numbers("x0", x0, "L")
    mu, s_delta, bias = as_number("mu", mu), as_number("s_delta", s_delta), as_number("bias", bias)
    a, times = as_number("a", a, positive=True), as_times(times)
    if mu == 0 or not tokens.any():
        return Simulation(times, np.tile(tokens, (times.size, 1)), None, tokens)
    flow = flow_of(tokens[:, None], *(np.array([value]) for value in (mu, s_delta, a, bias)))
    thetas = theta_of(times, flow.log_unit[0])
    drivers = (flow.sign[:, 0] >= 0) & flow.alive[:, 0] & (mu > 0)
    moved, end = _integrated(flow, thetas, drivers, np.log(2 * abs(mu)) + log_softplus(flow.bias)[0])
    return Simulation(
        times,
        _signed(tokens, flow, _monotone(flow, thetas, moved)),
        time_of(end[0], flow.log_unit[0]) if drivers.any() else None,
        _signed(tokens, flow, end[1:]),
    )


def _integrated(flow: Flow, thetas: Floats, drivers: np.ndarray, log_speed: float) -> tuple[Floats, Floats]:
    """u at each theta (T, L), NaN past the blow-up, and the last state (1 + L,).

    A driver's |x|' is at least e^log_speed |x|^3 / 2, so that it blows up within 1 / (e^log_speed x^2).
    """
    start = np.concatenate([[0.0], flow.start[:, 0]])
    found = np.where((thetas == 0)[:, None], start[1:], np.nan)

    def ended(state: Floats) -> bool:
        if not drivers.any():
            return bool(state[0] >= thetas.max())
        left = -log_speed - 2 * state[1:][drivers].max()
        return bool(left <= log_time(state[0], flow.log_unit[0]) + _LOG_NEGLIGIBLE)

    state = start
    path = steps(lambda tau, y: rates(flow, y[:, None])[0][:, 0], start)
    while not ended(state):
        old, solver = state[0], next(path)
        state = solver.y
        now = inside(old, state[0], thetas)
        found[now] = states_at(solver, thetas[now])[1:].T
    return found, state


def _monotone(flow: Flow, thetas: Floats, u: Floats) -> Floats:
    """The same (T, L) as it is known to be, rising or falling in time: rounding where nothing moves is taken away."""
    order = np.argsort(thetas, kind="stable")
    direction = flow.direction[0]
    rising = np.maximum.accumulate(direction * np.vstack([flow.start[:, 0], u[order]]))[1:]
    result = np.empty_like(u)
    result[order] = direction * rising
    return result


def _signed(tokens: Floats, flow: Flow, u: Floats) -> Floats:
    """Tokens of u: what they were at the start times e^(u - u_0), which is exact where they did not move."""
    moved = u - flow.start[:, 0]
    with np.errstate(over="ignore"):  # a token too large for a float is infinite
        return np.where(np.abs(moved) < _LARGEST_FACTOR, tokens * np.exp(moved), np.sign(tokens) * np.exp(u))
