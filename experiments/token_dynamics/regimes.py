"""Which regime a simulated configuration is in, by what its tokens and its clock do and by nothing else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Of the rescaled time: regimes are told by what happens between these. It takes any time t that decides into account:
# the logarithm of t grows by a fixed part of it, and tokens that blow up grow with its exponential. At 160 one of
# 5,000 random configurations with a bias still grew slowly that blows up later.
WATCHED = (320.0, 640.0)
CONVERGENT, SLOW, FAST, UNDECIDED = "convergent", "slow divergence", "fast divergence", "undecided"
REGIMES = (CONVERGENT, SLOW, FAST)
_TIME_STANDS = 1e-6  # growth of ln t up to which it does
_BLOWS_UP, _GROWS, _RESTS = 1.0, 1e-3, 1e-6  # change of ln|x|: at least, at least, and at most
_SMALL = np.log(100.0)  # by how much ln|x| falls in a token that converges
_TOGETHER = 250  # configurations that are integrated together


class Observed(NamedTuple):
    """What B configurations of L tokens do.

    Attributes:
        regimes: one of each, (B,).
        finite: whether a token stays finite while a later one blows up, (B,).
    """

    regimes: np.ndarray
    finite: np.ndarray


def observe(
    x0: np.ndarray, mu: np.ndarray, s_delta: np.ndarray, a: np.ndarray, bias: np.ndarray, rtol: float = 1e-8
) -> Observed:
    """Simulate configurations and say what they do.

    Args:
        x0: tokens (L, B), none of them 0.
        mu: (B,), none of them 0.
        s_delta: (B,).
        a: (B,).
        bias: (B,).
        rtol: relative tolerance of each step.

    Returns:
        "fast divergence" where time stands while a token grows; else "convergent" where all tokens fall and have become
        100 times smaller, and "slow divergence" where all grow; else "undecided".

    Example:
        >>> one = np.ones(2)
        >>> observe(np.array([[-1.0, 1.0]]), one, one, one, 0 * one).regimes.tolist()
        ['slow divergence', 'fast divergence']
    """
    from ssm.dynamics.flow import advanced, flow_of

    parts = [slice(first, first + _TOGETHER) for first in range(0, len(mu), _TOGETHER)]
    flows = [flow_of(x0[:, part], mu[part], s_delta[part], a[part], bias[part]) for part in parts]
    found = [_told(flow.start, advanced(flow, WATCHED, rtol)) for flow in flows]
    return Observed(np.concatenate([one.regimes for one in found]), np.concatenate([one.finite for one in found]))


def _told(start: np.ndarray, states: np.ndarray) -> Observed:
    """The regimes by u at the start (L, B), and theta and u at two later times (2, 1 + L, B)."""
    change = states[1, 1:] - states[0, 1:]
    stands = states[1, 0] - states[0, 0] < _TIME_STANDS
    conditions = [
        stands & (change > _GROWS).any(axis=0),
        ~stands & (change < 0).all(axis=0) & (states[1, 1:] < start - _SMALL).all(axis=0),
        ~stands & (change > _GROWS).all(axis=0),
    ]
    regimes = np.select(conditions, [FAST, CONVERGENT, SLOW], UNDECIDED)
    before = np.arange(len(start))[:, None] < (change > _BLOWS_UP).argmax(axis=0)
    return Observed(regimes, (regimes == FAST) & (before & (np.abs(change) < _RESTS)).any(axis=0))
