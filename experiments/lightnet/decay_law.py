"""How fast LightNet's decay goes to 1 when the key logits are independent and identically distributed.

With z_t = log sum_{j <= t} exp(a_j) the log decay is g_t = z_{t-1} - z_t. Frullani's integral, E log S = int (e^{-u} -
E e^{-uS}) du / u, applied to sums of t and t - 1 terms, gives the expectation without an approximation,

    E[-g_t] = int_0^inf phi(u)^{t-1} (1 - phi(u)) du / u,    phi(u) = E exp(-u e^a)

and for large t, where S is near its mean, t E[-g_t] -> 1 whatever the law of a, as long as E e^a is finite: the state
becomes a uniform average over the past. A single token's t (-g_t) tends to e^a / E e^a in law, whose median is
exp(-s^2 / 2) for a ~ N(0, s^2). Derived here; the paper's text was not at hand.
"""

from collections.abc import Sequence

import numpy as np

_LOG_U = np.arange(-40.0, 25.0, 0.02)
_NORMAL = np.arange(-9.0, 9.0, 0.01)


def expected_log_decay(steps: Sequence[int] | np.ndarray, spread: float) -> np.ndarray:
    """E[-g_t] for logits N(0, s^2).

    Both integrals are trapezoidal sums of smooth functions that vanish at both ends.

    Args:
        steps: t, from 2 on: the first token has no state to decay.
        spread: s, from 0 on.

    Returns:
        One number per step.

    Raises:
        ValueError: a step below 2, or a negative spread.

    Example:
        >>> expected_log_decay([3, 100], 0.0).round(6), np.log([3 / 2, 100 / 99]).round(6)
        (array([0.405465, 0.01005 ]), array([0.405465, 0.01005 ]))
    """
    t = np.asarray(steps)
    if t.ndim != 1 or not np.all(t >= 2):
        raise ValueError(f"steps: got {steps!r}, expected one-dimensional numbers from 2")
    if not 0 <= spread < np.inf:
        raise ValueError(f"spread: got {spread}, expected a finite number from 0")
    density = np.exp(-(_NORMAL**2) / 2)
    density /= density.sum()
    hazard = np.exp(np.minimum(_LOG_U[:, None] + spread * _NORMAL, 50))
    missed = -np.expm1(-hazard) @ density  # 1 - phi, without cancellation at small u
    stays = np.log1p(-np.minimum(missed, 1 - 1e-16))
    return np.array([np.sum(np.exp((n - 1) * stays) * missed) for n in t]) * (_LOG_U[1] - _LOG_U[0])


def median_step(spread: float) -> float:
    """The median that t (-g_t) tends to for logits N(0, s^2), exp(-s^2 / 2).

    Example:
        >>> round(median_step(1.0), 4)
        0.6065
    """
    return float(np.exp(-(spread**2) / 2))
