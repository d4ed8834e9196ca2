"""The limit in depth in one dimension, in logarithms and rescaled time, for many configurations at once.

    dx_l / dt = mu x_l g_l,    g_l = e^(-a D_l) g_{l-1} + x_l^2 D_l,    D_l = softplus(s x_l + b)

with g_0 = 0: the sum over j <= l of x_j^2 D_j exp(-a sum_{k = j+1..l} D_k), evaluated as the scan that it is. Tokens
keep their sign and a zero stays zero, so that what moves is u_l = ln|x_l|, with u_l' = mu g_l. Time is rescaled as in
`ssm.dynamics.stepping` with rate = |mu| sum_l g_l. Then mu is its sign and a unit of time, and nothing overflows,
however large or small the tokens are: g is computed relative to its largest term.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ssm.dynamics.checks import Floats, log_softplus, softplus
from ssm.dynamics.stepping import RELATIVE, steps

_LARGEST_EXPONENT = 700.0  # of a token times its step weight, which is so large there that only that matters


class Flow(NamedTuple):
    """B configurations of L tokens, tokens first; a zero token has u = 0, which is not used.

    Attributes:
        direction: sign of mu, (B,).
        a: (B,).
        bias: (B,), b.
        log_weight: ln|s|, (B,); 0 where s = 0.
        sign: of s x, (L, B).
        alive: whether x is not 0, (L, B); at least one of each configuration.
        start: u at t = 0, (L, B).
        log_rate: ln(sum_l g_l) at t = 0, (B,).
        log_unit: ln t0 = -ln(|mu| sum_l g_l) at t = 0, (B,).
    """

    direction: Floats
    a: Floats
    bias: Floats
    log_weight: Floats
    sign: Floats
    alive: np.ndarray
    start: Floats
    log_rate: Floats
    log_unit: Floats


def flow_of(x0: Floats, mu: Floats, s_delta: Floats, a: Floats, bias: Floats) -> Flow:
    """Configurations in logarithms.

    Args:
        x0: tokens (L, B), of each configuration at least one not 0.
        mu: (B,), not 0.
        s_delta: (B,), s.
        a: (B,), positive.
        bias: (B,), b.

    Returns:
        The configurations.

    Example:
        >>> one = np.ones(1)
        >>> flow_of(np.array([[-2.0], [0.0]]), one, one, one, 0 * one).sign.tolist()
        [[-1.0], [0.0]]
    """
    alive = x0 != 0
    start = np.log(np.abs(np.where(alive, x0, 1.0)))
    weighted = s_delta != 0
    flow = Flow(
        direction=np.sign(mu),
        a=a,
        bias=bias,
        log_weight=np.log(np.abs(np.where(weighted, s_delta, 1.0))),
        sign=np.sign(s_delta) * np.sign(x0),
        alive=alive,
        start=start,
        log_rate=np.zeros_like(mu),
        log_unit=np.zeros_like(mu),
    )
    _, log_rate = shares(flow, start)
    return flow._replace(log_rate=log_rate, log_unit=-np.log(np.abs(mu)) - log_rate)


def shares(flow: Flow, u: Floats) -> tuple[Floats, Floats]:
    """Which part of the growth each token has, and the growth.

    Args:
        flow: the configurations.
        u: ln|x| (L, B).

    Returns:
        g_l / sum_l g_l (L, B), 0 for zero tokens, and ln(sum_l g_l) (B,), both over the tokens that are not 0.
    """
    z = flow.sign * np.exp(np.minimum(u + flow.log_weight, _LARGEST_EXPONENT)) + flow.bias
    log_terms = np.where(flow.alive, 2 * u + log_softplus(z), -np.inf)
    top = log_terms.max(axis=0)
    g = np.exp(log_terms - top)
    with np.errstate(over="ignore"):
        decay = np.exp(-flow.a * softplus(z))
    for now, before, kept in zip(g[1:], g, decay[1:], strict=False):
        now += kept * before
    g *= flow.alive
    total = g.sum(axis=0)
    return g / total, top + np.log(total)


def rates(flow: Flow, state: Floats) -> tuple[Floats, Floats]:
    """d state / d tau, and r = ln(rate (t0 + t)).

    Args:
        flow: the configurations.
        state: theta and u, (1 + L, B).

    Returns:
        (1 + L, B), and r (B,).
    """
    part, log_rate = shares(flow, state[1:])
    r = state[0] + log_rate - flow.log_rate
    return np.vstack([expit(-r)[None], flow.direction * expit(r) * part]), r


def advanced(flow: Flow, durations: Sequence[float], rtol: float = RELATIVE) -> Floats:
    """All configurations after some of the rescaled time, each in its own.

    Args:
        flow: the configurations.
        durations: of tau, rising, T of them.
        rtol: relative tolerance of each step.

    Returns:
        theta and u, (T, 1 + L, B).

    Example:
        >>> one = np.ones(1)
        >>> flow = flow_of(np.array([[1.0]]), -one, 0 * one, one, 0 * one)
        >>> theta, u = advanced(flow, [40.0])[0, :, 0]
        >>> abs(round(float(u + (theta + np.log(2)) / 2), 6))  # x^2 = 1 / (1 + 2 ln2 t) and t0 = 1 / ln 2
        0.0
    """
    shape = (1 + len(flow.start), flow.start.shape[1])
    state = np.vstack([np.zeros((1, shape[1])), flow.start]).ravel()
    taken = steps(lambda tau, now: rates(flow, now.reshape(shape))[0].ravel(), state, rtol=rtol)
    solver, found = next(taken), []
    for duration in durations:
        while solver.t < duration:
            solver = next(taken)
        found.append(solver.dense_output()(duration).reshape(shape))
    return np.stack(found)
