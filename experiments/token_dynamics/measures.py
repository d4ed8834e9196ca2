"""One-dimensional configurations, and what the claims about them measure of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.token_dynamics.regimes import CONVERGENT, FAST, SLOW, observe

CONVERGING = 10.0 ** np.arange(6, 17)  # times
CONVERGED, SOON, LATE = 1e16, 1e12, 1e30  # times
NEAR, NEARER = 1e-4, 1e-8  # parts of the time of a blow-up that are left


@dataclass(frozen=True)
class Setting:
    """One configuration.

    Attributes:
        regime: that its parameters are meant for.
        x0: tokens (L,).
        mu: input-output weight.
        s_delta: step-size weight.
        a: minus the state matrix.
    """

    regime: str
    x0: np.ndarray
    mu: float
    s_delta: float
    a: float

    def tokens(self, times: Any) -> np.ndarray:
        """Tokens (T, L) at these times."""
        from ssm.dynamics import simulate

        return simulate(self.x0, self.mu, self.s_delta, self.a, times).tokens


def measured(setting: Setting) -> dict[str, float]:
    """What claims are about, of one configuration."""
    own = {CONVERGENT: _convergent, SLOW: _slow, FAST: _fast}[setting.regime](setting)
    right = observed(setting) == setting.regime
    own["Table1-regimes"] = float(right)
    if setting.regime == FAST:
        own["fast-blow-up"] = float(right)
    if setting.regime == SLOW and not right:  # `simulate` knows by a theorem whether there is a blow-up, `observe` not
        own["slow-global-existence"] = 0.0
    own["sign-and-monotone"] = against_direction(setting)
    return own


def observed(setting: Setting) -> str:
    """The regime that a simulation is in which is told nothing of what its parameters mean.

    Example:
        >>> observed(Setting(SLOW, np.array([-1.0, 0.5]), mu=1.0, s_delta=1.0, a=1.0))
        'fast divergence'
    """
    mu, s_delta, a, bias = np.array([[setting.mu], [setting.s_delta], [setting.a], [0.0]])
    return str(observe(setting.x0[:, None], mu, s_delta, a, bias).regimes[0])


def _convergent(setting: Setting) -> dict[str, float]:
    from ssm.dynamics import convergence_constants

    tokens, constants = np.abs(setting.tokens(CONVERGING)), convergence_constants(setting.x0, setting.mu, setting.a)
    x, scaled = tokens[-1], tokens * CONVERGING[:, None] ** 0.5
    relative = scaled[-1] / constants
    maps = [np.abs(attention(setting, tokens)).max() for tokens in (setting.x0, x * np.sign(setting.x0))]
    return {
        "conv-all-to-zero": float(x.max()),
        "conv-rate": float(scaled.max() / constants[0]),
        "conv-constant-first-token": float(relative[0]),
        "conv-constant-later-tokens": float(relative[1 + np.argmax(np.abs(relative[1:] - 1))]),
        "conv-hidden-attention-vanishes": float(maps[1] / maps[0]),
    }


def _slow(setting: Setting) -> dict[str, float]:
    from ssm.dynamics import slow_first_token

    soon, late = tokens = np.abs(setting.tokens([SOON, LATE]))
    bounded = tokens / np.log([[SOON], [LATE]]) ** (1 + np.arange(len(soon)))
    ratios = tokens / tokens[:, :1]
    law = slow_first_token([LATE], setting.mu, setting.s_delta)[0]
    return {
        "slow-global-existence": float((late / soon).min()),
        "slow-upper-bound": float((bounded[1] / bounded[0]).max()),
        "slow-logarithmic": float(np.abs(ratios[1] / ratios[0] - 1).max()),
        "slow-first-token-constant": float(late[0] / law),
        "different-rates": float(np.log(late.max() / late.min())),
        "figures-hidden-attention": _entropy_change(setting, -late),
    }


def _fast(setting: Setting) -> dict[str, float]:
    from ssm.dynamics import blow_up_bound

    end = blow_up_time(setting)
    tokens = setting.tokens(end * (1 - np.array([NEAR, NEARER])))
    growth = np.diff(np.log(np.abs(tokens)), axis=0)[0]
    first = first_to_blow_up(growth)
    earlier = float(growth[:first].max(initial=0.0))
    return {
        "fast-bound": end / blow_up_bound(setting.x0, setting.mu, setting.s_delta),
        "fast-earlier-tokens-finite": earlier / float(growth[first:].min()),
        "figures-hidden-attention": _entropy_change(setting, tokens[1]),
    }


def blow_up_time(setting: Setting) -> float:
    """When the tokens of a setting that is meant for the fast divergence cease to exist."""
    from ssm.dynamics import simulate

    end = simulate(setting.x0, setting.mu, setting.s_delta, setting.a, [0.0]).blow_up_time
    assert end is not None
    return end


def first_to_blow_up(growth: np.ndarray) -> int:
    """Index of the first token that blows up, by changes of ln|x| (L,) while what is left of the time falls 1e4-fold.

    The first one grows with its power -1/3, that is by 3.07, those that follow it in constant ratio too; what only
    diverges with ln ln |x|, or not at all, grows by less than 1.

    Example:
        >>> first_to_blow_up(np.array([0.01, 3.07, 0.1]))
        1
    """
    return int(np.argmax(growth > 1.0))


def attention(setting: Setting, tokens: np.ndarray) -> np.ndarray:
    """Hidden attention P (L, L) of a configuration at some tokens (L,), in float64."""
    import jax

    from ssm.dynamics import hidden_attention

    one = np.ones((1, 1))
    with jax.enable_x64(True):
        weights = (setting.mu * one, one, setting.s_delta * one, setting.a * one[0])
        return np.asarray(hidden_attention(tokens[:, None], *weights)[0])


def _entropy_change(setting: Setting, tokens: np.ndarray) -> float:
    return entropy(attention(setting, tokens)) - entropy(attention(setting, setting.x0))


def entropy(weights: np.ndarray) -> float:
    """Entropy of absolute weights over their sum, bits.

    Example:
        >>> entropy(np.array([[1.0, 0.0], [-1.0, 0.0]]))
        1.0
    """
    part = np.abs(weights).ravel() / np.abs(weights).sum()
    return float(-(part[part > 0] * np.log2(part[part > 0])).sum())


def against_direction(setting: Setting) -> float:
    """Largest step of |x| against the sign of mu, over |x|, in the simulation that does not know of it."""
    from ssm.dynamics import simulate_tokens

    end = {CONVERGENT: 1e10, SLOW: 1e10}.get(setting.regime) or 0.999 * blow_up_time(setting)
    times = np.append(0.0, end * np.geomspace(1e-8, 1, 40))
    one = np.ones((1, 1))
    weights = (setting.mu * one, setting.s_delta * one, [setting.a])
    x = simulate_tokens(setting.x0[:, None], *weights, times).tokens[:, :, 0]
    if (np.sign(x) != np.sign(setting.x0)).any():
        return float("inf")
    return float(np.max(-np.sign(setting.mu) * np.diff(np.log(np.abs(x)), axis=0), initial=0.0))
