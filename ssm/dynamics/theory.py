"""What is known in closed form of the limit in one dimension: regimes, constants, rates and times.

The regimes and the orders of the rates are the paper's (arXiv 2410.03292, from its abstract and summaries of it); the
constants, the bound, the law of the first token and what a bias b does are ours. With s = s_delta, D0 = ln(1 + e^b):

| regime | condition | what happens |
|---|---|---|
| constant | mu = 0, or all tokens 0 | nothing |
| convergent | mu < 0 | x_1 sqrt(t) -> c_1 = (2 abs(mu) D0)^(-1/2), later ones c_1 sqrt(1 - e^(-a D0)), up to sign |
| slow divergence | mu > 0, s x < 0 at every token | abs(s x_1) = ln t + 3 ln abs(x_1) + ln(mu abs(s)) + b + o(1) |
| fast divergence | mu > 0, s x >= 0 at some token | a blow-up at T* <= 1 / (2 mu D0 x^2), for each such token |

Tokens that are 0 stay 0 and count in no condition. What is computed from D0 is so from its logarithm: it is right where
D0 itself underflows, at biases below -745, and infinite where it is too large for a float64.
"""

from typing import Literal, TypeAlias

import numpy as np
from scipy.special import lambertw

from ssm.dynamics.checks import Floats, Numbers, as_number, as_numbers, as_times, log_softplus

Regime: TypeAlias = Literal["constant", "convergent", "slow divergence", "fast divergence"]


def regime(x0: Numbers, mu: Numbers, s_delta: Numbers) -> Regime:
    """Which of the regimes the parameters lead to; see the module. A bias or the value of `a` changes none of it.

    Why (ours): for mu < 0 every |x| falls. For mu > 0 a token with s x >= 0 has |x|' >= mu D0 |x|^3; without one,
    x^2 ln(1 + e^(s x + b)) is bounded, so that no token blows up.

    Args:
        x0: tokens at t = 0, (L,).
        mu: the input-output weight.
        s_delta: the step-size weight.

    Returns:
        "constant", "convergent", "slow divergence" or "fast divergence".

    Raises:
        ValueError: an argument has another shape than stated.

    Example:
        >>> regime([-1.0, -2.0], 1.0, 1.0), regime([-1.0, 2.0], 1.0, 1.0), regime([-1.0, 2.0], -1.0, 1.0)
        ('slow divergence', 'fast divergence', 'convergent')
    """
    tokens, mu, s_delta = as_numbers("x0", x0, "L"), as_number("mu", mu), as_number("s_delta", s_delta)
    if mu == 0 or not tokens.any():
        return "constant"
    if mu < 0:
        return "convergent"
    return "fast divergence" if _drivers(tokens, s_delta).size else "slow divergence"


def convergence_constants(x0: Numbers, mu: Numbers, a: Numbers, *, bias: Numbers = 0.0) -> Floats:
    """Limits of |x_l| sqrt(t) for mu < 0 (ours).

    With x_l = c_l t^(-1/2), every token that is not 0 has sum_{j <= l} c_j^2 e^(-a D0 (l - j)) = 1 / (2 |mu| D0). So
    the first has c_1^2 = 1 / (2 |mu| D0), and one whose predecessor is k places before it (1 but for zeros in between)
    has c_1^2 (1 - e^(-k a D0)). They are reached slowly for small a, with an error of t^(-(1 - e^(-a D0))).

    Args:
        x0: tokens at t = 0, (L,), of which only matters which are 0.
        mu: the input-output weight, below 0.
        a: minus the state matrix, above 0.
        bias: inside the softplus.

    Returns:
        (L,), 0 for tokens that are 0.

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> convergence_constants([3.0, -1.0, 0.5], mu=-1.0, a=1.0).round(4).tolist()
        [0.8493, 0.6006, 0.6006]
    """
    tokens, mu = as_numbers("x0", x0, "L"), as_number("mu", mu)
    a, log_step = as_number("a", a, positive=True), _log_step(bias)
    if mu >= 0:
        raise ValueError(f"mu: got {mu}, expected below 0, as only then tokens converge")
    alive = np.flatnonzero(tokens)
    constants = np.zeros_like(tokens)
    log_share = _log_one_minus_exp(np.log(a) + log_step + np.log(np.diff(alive)))
    log_shares = np.concatenate([np.zeros(min(1, alive.size)), log_share])
    constants[alive] = _exp((log_shares - np.log(2) - np.log(-mu) - log_step) / 2)
    return constants


def blow_up_bound(x0: Numbers, mu: Numbers, s_delta: Numbers, *, bias: Numbers = 0.0) -> float:
    """The latest time at which tokens can blow up: min of 1 / (2 mu D0 x^2) over tokens with s x >= 0 (ours).

    Args:
        x0: tokens at t = 0, (L,).
        mu: the input-output weight.
        s_delta: the step-size weight.
        bias: inside the softplus.

    Returns:
        The bound, infinity in the other regimes.

    Raises:
        ValueError: an argument has another shape than stated.

    Example:
        >>> round(blow_up_bound([-0.5, -0.3, 0.6, -0.4, 0.2], 1.0, 1.0), 4)
        2.0037
    """
    tokens, mu, s_delta = as_numbers("x0", x0, "L"), as_number("mu", mu), as_number("s_delta", s_delta)
    log_step, drivers = _log_step(bias), _drivers(tokens, s_delta)
    if mu <= 0 or not drivers.size:
        return float("inf")
    return float(_exp(-np.log(2) - np.log(mu) - log_step - 2 * np.log(np.abs(drivers).max())))


def blow_up_law(mu: Numbers, s_delta: Numbers, *, bias: Numbers = 0.0) -> tuple[float, float]:
    """How the first token to blow up does it: |x| (T* - t)^p -> c (ours).

    With s x > 0 its step size becomes s x and |x|' = mu |s| x^4 (1 + o(1)): p = 1/3, c = (3 mu |s|)^(-1/3). With s = 0
    |x|' = mu D0 |x|^3 (1 + o(1)): p = 1/2, c = (2 mu D0)^(-1/2), if it is the first token at all or the tokens before
    it stay finite. Of later tokens those with s x < 0 diverge in constant ratio to it; those with s x > 0 write to the
    state what they are and hardly see the one before, d ln|x_l| / d ln|x| = e^(-a s x_l): they diverge like ln ln |x|.

    Args:
        mu: the input-output weight, above 0.
        s_delta: the step-size weight.
        bias: inside the softplus.

    Returns:
        c and p.

    Raises:
        ValueError: mu is not above 0.

    Example:
        >>> blow_up_law(1.0, 9.0)
        (0.3333333333333333, 0.3333333333333333)
    """
    mu, s_delta = as_number("mu", mu, positive=True), as_number("s_delta", s_delta)
    if s_delta == 0:
        return float(_exp(-(np.log(2) + np.log(mu) + _log_step(bias)) / 2)), 0.5
    return float(_exp(-(np.log(3) + np.log(mu) + np.log(abs(s_delta))) / 3)), 1 / 3


def slow_first_token(times: Numbers, mu: Numbers, s_delta: Numbers, *, bias: Numbers = 0.0) -> Floats:
    """|x_1| at large times in the slow divergence, with an error that tends to 0 (ours).

    x' = mu x^3 e^(b - s x) for large x, so that e^(s x - b) / (s x^3) = mu t (1 + o(1)), the law of the module. Its
    larger solution is -(3 / s) W_{-1}(-(s / 3) (s mu t e^b)^(-1/3)), with Lambert's W and s = |s_delta|.

    Args:
        times: (T,), at least 0.
        mu: the input-output weight, above 0.
        s_delta: the step-size weight, not 0.
        bias: inside the softplus.

    Returns:
        (T,), NaN at times too early for the law, where it has no solution.

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> slow_first_token([1e30], mu=1.0, s_delta=-1.0).round(1).tolist()
        [82.3]
    """
    mu, s, bias = as_number("mu", mu, positive=True), abs(as_number("s_delta", s_delta)), as_number("bias", bias)
    if s == 0:
        raise ValueError("s_delta: got 0.0, expected another number, as with 0 there is no slow divergence")
    with np.errstate(divide="ignore"):
        size = np.log(as_times(times)) + np.log(mu) + np.log(s) + bias
    argument = -_exp(np.log(s / 3) - size / 3)
    return np.where(argument >= -np.exp(-1), -3 / s * lambertw(np.maximum(argument, -np.exp(-1)), -1).real, np.nan)


def _drivers(tokens: Floats, s_delta: float) -> Floats:
    """Tokens that are not 0 and whose step size does not vanish as they grow."""
    return tokens[(tokens != 0) & (np.sign(s_delta) * np.sign(tokens) >= 0)]


def _log_step(bias: Numbers) -> float:
    """ln D0, with D0 = ln(1 + e^bias)."""
    return float(log_softplus(np.array([as_number("bias", bias)]))[0])


def _log_one_minus_exp(log_y: Floats) -> Floats:
    """ln(1 - e^-y) of ln y, which is ln y itself where y is below the rounding."""
    return np.where(log_y < -40, log_y, np.log(-np.expm1(-np.exp(np.clip(log_y, -40, 700)))))


def _exp(exponent: Numbers) -> Floats:
    """e to it, infinity where that is too large for a float64."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(exponent))
