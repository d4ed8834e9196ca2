"""Tokens in one dimension: the three regimes, their constants and rates, and the hidden attention in each.

Each seed draws initial tokens, |mu|, |S_Delta| and a for each regime: mu < 0 with both signs of S_Delta (convergent),
mu > 0 with S_Delta x < 0 at all tokens (slow divergence), and mu > 0 with S_Delta x > 0 at some (fast divergence). A
seed's number is the worst of its draws. Regimes are told from the simulation alone, as in the phase diagram. That
tokens keep their sign and are monotone is built into the simulation in one dimension, so it is measured on the one for
any number.

The table `named` is one configuration of which the time of the blow-up is known from an independent integration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.token_dynamics.measures import (
    CONVERGED,
    LATE,
    NEAR,
    NEARER,
    SOON,
    Setting,
    attention,
    blow_up_time,
    measured,
)
from experiments.token_dynamics.regimes import CONVERGENT, FAST, REGIMES, SLOW
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="Table 1 and the one-dimensional figures, as far as its abstract and summaries tell them",
    minutes={"smoke": 0.2, "cpu": 0.4},
    headline=True,
)
NAMED = (-0.5, -0.3, 0.6, -0.4, 0.2)


@dataclass(frozen=True)
class Config(results.Config):
    """The configurations."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One set of configurations each."""
    draws: int = 2
    """Configurations of each regime and seed."""
    length: int = 10
    """Tokens of a configuration."""
    spread: float = 1.6
    """|mu|, |S_Delta| and a, minus the state matrix, are log-uniform between 1 / spread and spread. At a = 0.5 later
    tokens are still up to 0.6 % from their constant at the last time, at 1 / 1.6 up to 0.2 %."""
    points: int = 80
    """Times of a curve in the figure."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("draws", self.draws, 1)
        require("length", self.length, 2)
        require("points", self.points, 3)
        require("spread", self.spread, 1, 10)


PRESETS = {"smoke": Config(seeds=(0,), draws=1, length=4, points=8), "cpu": Config()}

CLAIMS = (
    Claim("token_dynamics/conv-all-to-zero", "mu < 0: largest |x_l| at t = 1e16", "below", 1e-6),
    Claim(
        "token_dynamics/conv-rate",
        "mu < 0: largest |x_l| sqrt(t) of a token over c_1 = (2 |mu| ln 2)^-1/2, at the powers of ten from t = 1e6 to "
        "1e16",
        "below",
        1.01,
    ),
    Claim(
        "token_dynamics/conv-constant-first-token",
        "mu < 0: |x_1| sqrt(t) at t = 1e16 over (2 |mu| ln 2)^-1/2",
        "within",
        1.0,
        tolerance=0.01,
        kind="ours",
    ),
    Claim(
        "token_dynamics/conv-constant-later-tokens",
        "mu < 0: |x_l| sqrt(t) at t = 1e16 over c_1 sqrt(1 - 2^-a), the token farthest from 1",
        "within",
        1.0,
        tolerance=0.01,
        kind="ours",
    ),
    Claim(
        "token_dynamics/conv-hidden-attention-vanishes",
        "mu < 0: largest |P_lj| at t = 1e16 over the largest at t = 0",
        "below",
        1e-6,
    ),
    Claim(
        "token_dynamics/slow-global-existence",
        "mu > 0, all S_Delta x < 0: smallest |x_l(1e30)| / |x_l(1e12)| of a token; 0 unless a simulation that "
        "takes nothing from theory is seen to diverge slowly, that is while its time goes on without an end",
        "above",
        1.5,
    ),
    Claim(
        "token_dynamics/slow-upper-bound",
        "the same: largest |x_l| / (ln t)^l of a token at t = 1e30 over what it is at 1e12",
        "below",
        1.0,
    ),
    Claim(
        "token_dynamics/slow-logarithmic",
        "the same: largest relative change of |x_l| / |x_1| of a token between t = 1e12 and 1e30",
        "below",
        1e-3,
        kind="ours",
    ),
    Claim(
        "token_dynamics/slow-first-token-constant",
        "the same: |x_1| at t = 1e30 over the law's",
        "within",
        1.0,
        tolerance=0.01,
        kind="ours",
    ),
    Claim(
        "token_dynamics/different-rates",
        "the same: logarithm of the largest over the smallest |x_l| at t = 1e30, of the draw where they differ least",
        "above",
        0.4,
    ),
    Claim(
        "token_dynamics/fast-blow-up",
        "mu > 0, some S_Delta x > 0: share of the draws in which time stands still while a token grows",
        "above",
        1.0,
    ),
    Claim(
        "token_dynamics/fast-bound",
        "the same: largest time of the blow-up over min 1 / (2 mu ln 2 x_l0^2)",
        "below",
        1.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/fast-earlier-tokens-finite",
        "the same: largest growth of a token before the first to blow up, over the smallest of that and later ones, "
        "growth being the change of ln|x| between 1e-4 and 1e-8 of the time before the end",
        "below",
        0.01,
        kind="ours",
    ),
    Claim(
        "token_dynamics/Table1-regimes",
        "share of the draws that simulation puts in the regime that their parameters are meant for",
        "above",
        1.0,
    ),
    Claim(
        "token_dynamics/figures-hidden-attention",
        "mu > 0: largest change of the entropy of |P| over its sum between start and end (t = 1e30 or 1e-8 of the time "
        "before the blow-up), bits",
        "below",
        0.0,
    ),
    Claim(
        "token_dynamics/sign-and-monotone",
        "all regimes: largest relative step of a token against its direction, infinite if a sign changes",
        "below",
        1e-8,
        kind="ours",
    ),
)


def settings(config: Config, seed: int) -> list[Setting]:
    """The configurations of a seed: of each regime `draws`, of the convergent one as many more with -S_Delta.

    Args:
        config: their number, length and spread.
        seed: of the random numbers.

    Returns:
        The settings, one regime behind the other.

    Example:
        >>> [setting.regime for setting in settings(Config(draws=1), 0)]
        ['convergent', 'convergent', 'slow divergence', 'fast divergence']
    """
    random = np.random.default_rng(seed)
    made = []
    for _ in range(config.draws):
        x0 = random.standard_normal((3, config.length))
        mu, s, a = config.spread ** random.uniform(-1, 1, (3, 3))  # [parameter, regime]
        driven = np.append(x0[2, :-1], np.abs(x0[2, -1]))  # of the last token at least S_Delta x > 0
        made += [Setting(CONVERGENT, x0[0], -mu[0], sign * s[0], a[0]) for sign in (1, -1)]
        made.append(Setting(SLOW, -np.abs(x0[1]), mu[1], s[1], a[1]))
        made.append(Setting(FAST, driven, mu[2], s[2], a[2]))
    return sorted(made, key=lambda setting: REGIMES.index(setting.regime))


def run(config: Config, run_dir: Path) -> Result:
    """Measure all configurations of every seed, and keep those of the first for the figure."""
    from ssm.dynamics import blow_up_bound, simulate

    found: dict[str, list[float]] = {claim.id.partition("/")[2]: [] for claim in CLAIMS}
    tables: dict[str, dict[str, list]] = {}
    for seed in config.seeds:
        made = settings(config, seed)
        of_each = [measured(setting) for setting in made]
        for name, value in worst(of_each).items():
            found[name].append(value)
        for setting in made:
            _add_rows(tables, seed, setting)
    shown = {setting.regime: setting for setting in reversed(settings(config, config.seeds[0]))}
    named = simulate(NAMED, 1.0, 1.0, 1.0, [0.0]).blow_up_time
    tables["named"] = {"blow-up": [named], "bound": [blow_up_bound(NAMED, 1.0, 1.0)]}
    series = {regime: _curves(config, setting) for regime, setting in shown.items()}
    return Result({f"token_dynamics/{name}": values for name, values in found.items()}, tables, series)


def worst(values: list[dict[str, float]]) -> dict[str, float]:
    """Of each name the value that speaks most against its claim; the mean of shares.

    Args:
        values: name -> value, of each configuration.

    Returns:
        name -> value.

    Example:
        >>> worst([{"fast-bound": 0.3}, {"fast-bound": 0.5}, {"fast-blow-up": 1.0}])
        {'fast-bound': 0.5, 'fast-blow-up': 1.0}
    """
    tests = {claim.id.partition("/")[2]: claim for claim in CLAIMS}
    gathered: dict[str, list[float]] = {}
    for one in values:
        for name, value in one.items():
            gathered.setdefault(name, []).append(value)

    def of(name: str, numbers: list[float]) -> float:
        if name in ("Table1-regimes", "fast-blow-up"):
            return float(np.mean(numbers))
        claim = tests[name]
        if claim.test == "within":
            return max(numbers, key=lambda number: abs(number - claim.expected))
        return max(numbers) if claim.test == "below" else min(numbers)

    return {name: of(name, numbers) for name, numbers in gathered.items()}


def _add_rows(tables: dict[str, dict[str, list]], seed: int, setting: Setting) -> None:
    """A row for each token at the end of its regime."""
    if setting.regime == CONVERGENT:
        scaled = setting.tokens([CONVERGED])[0] * CONVERGED**0.5
        columns = {"x0": setting.x0, "x sqrt(t)": scaled}
    elif setting.regime == SLOW:
        soon, late = setting.tokens([SOON, LATE])
        columns = {
            "x0": setting.x0,
            "ratio at 1e12": soon / soon[0],
            "ratio at 1e30": late / late[0],
            "x at 1e30": late,
        }
    else:
        end = blow_up_time(setting)
        near, nearer = setting.tokens(end * (1 - np.array([NEAR, NEARER])))
        columns = {"x0": setting.x0, "blow-up": [end] * len(near), "x near it": near, "x nearer": nearer}
    numbers = {"mu": setting.mu, "S_Delta": setting.s_delta, "a": setting.a}
    columns |= {name: [number] * len(setting.x0) for name, number in numbers.items()}
    table = tables.setdefault(setting.regime, {"seed": [], "token": [], **{name: [] for name in columns}})
    table["seed"] += [seed] * len(setting.x0)
    table["token"] += list(range(1, 1 + len(setting.x0)))
    for name, values in columns.items():
        table[name] += [float(value) for value in values]


def _curves(config: Config, setting: Setting) -> dict[str, np.ndarray]:
    """Tokens over time, and the hidden attention at the first, a middle and the last time."""
    if setting.regime == FAST:
        left = np.geomspace(1, 1e-8, config.points)
        times, axis = blow_up_time(setting) * (1 - left), left
    else:
        times = axis = np.geomspace(1e-2, 1e10 if setting.regime == CONVERGENT else LATE, config.points)
    tokens = setting.tokens(times)
    shown = [0, config.points // 2, config.points - 1]
    maps = np.stack([attention(setting, tokens[index]) for index in shown])
    return {"time": axis, "tokens": tokens, "map times": axis[shown], "maps": maps}


def plot(result: StoredResult) -> Figure:
    """A row per regime: |tokens| over time, and the hidden attention at three of the times, each to its largest."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 4, figsize=(12, 8), layout="constrained", width_ratios=(1.6, 1, 1, 1))
    for row, regime in zip(axes, REGIMES, strict=True):
        curves = result.series[regime]
        _tokens(row[0], regime, curves)
        label = "left of T*" if regime == FAST else "t"
        for axis, time, weights in zip(row[1:], curves["map times"], curves["maps"], strict=True):
            largest = np.abs(weights).max()
            axis.imshow(weights / largest, cmap="RdBu_r", vmin=-1, vmax=1)
            axis.set(title=f"{label} = {time:.1g}, largest {largest:.1g}", xlabel="token j", ylabel="token l")
            axis.title.set_fontsize(9)
            axis.set(xticks=[], yticks=[])
    return figure


def _tokens(axis: Axes, regime: str, curves: dict[str, np.ndarray]) -> None:
    for number, token in enumerate(curves["tokens"].T):
        shade = number / max(1, curves["tokens"].shape[1] - 1)
        axis.plot(curves["time"], np.abs(token), color=(0.1, 0.2 + 0.6 * shade, 0.8 - 0.6 * shade), linewidth=1)
    axis.set(xscale="log", yscale="log", title=regime, ylabel="|x|, first token blue, last green")
    if regime == FAST:
        axis.invert_xaxis()
        axis.set_xlabel("part of the time left before the blow-up")
    else:
        axis.set_xlabel("time")
