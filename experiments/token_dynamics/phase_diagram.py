"""Predicted against simulated regimes of one-dimensional tokens over random parameters.

Every draw has its own input-output weight mu, step-size weight S_Delta, state matrix a and initial tokens: a third of
them with S_Delta x < 0 at all tokens, a third with > 0 at all, a third with random signs. The prediction uses signs
alone. The simulated regime uses no theory: a configuration diverges fast if time stands still while a token grows,
slowly if all of its tokens grow while time goes on, and it converges if all fall and become 100 times smaller. What is
none of these is undecided, counted, and not compared. A second set of draws has a bias inside the softplus.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.token_dynamics.regimes import REGIMES, UNDECIDED, Observed, observe
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="one-dimensional theorems, as far as its abstract and summaries tell them",
    minutes={"smoke": 0.1, "cpu": 0.7},
)


@dataclass(frozen=True)
class Config(results.Config):
    """How many draws, of what."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One set of draws each."""
    draws: int = 2500
    """Configurations of each seed."""
    biased_draws: int = 1000
    """Configurations of each seed with a bias."""
    length: int = 5
    """Tokens of a configuration."""
    mu: tuple[float, float] = (1e-3, 1e3)
    """Range of |mu|, of which the logarithm is uniform."""
    s_delta: tuple[float, float] = (0.1, 10.0)
    """Range of |S_Delta|, likewise."""
    a: tuple[float, float] = (0.01, 100.0)
    """Range of a, likewise."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("draws", "biased_draws", "length"):
            require(name, getattr(self, name), 1)
        for name in ("mu", "s_delta", "a"):
            low, high = getattr(self, name)
            require(f"the smaller end of {name}", low, 1e-100, high)


PRESETS = {"smoke": Config(seeds=(0,), draws=30, biased_draws=10), "cpu": Config()}

CLAIMS = (
    Claim(
        "token_dynamics/phase-diagram",
        "draws of a seed whose simulated regime is decided and not the predicted one",
        "below",
        0.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/abstract-criterion",
        "share of the decided draws that are not in the regime that most draws with the same sign of mu and the same "
        "answer to 'is S_Delta x > 0 at some token' are in",
        "below",
        0.0,
    ),
    Claim(
        "token_dynamics/abstract-dichotomy",
        "share of the decided draws in which a token stays finite while another diverges",
        "below",
        0.0,
    ),
    Claim(
        "token_dynamics/bias-keeps-criterion",
        "draws of a seed with a bias whose simulated regime is decided and not the one predicted without it",
        "below",
        0.0,
        kind="ours",
    ),
)


@dataclass(frozen=True)
class Draws:
    """Parameters of configurations.

    Attributes:
        x0: tokens (L, B).
        mu: (B,).
        s_delta: (B,).
        a: (B,).
        bias: (B,).
    """

    x0: np.ndarray
    mu: np.ndarray
    s_delta: np.ndarray
    a: np.ndarray
    bias: np.ndarray


def draw(config: Config, seed: int, *, biased: bool) -> Draws:
    """Random configurations.

    Args:
        config: how many, and their ranges.
        seed: of the random numbers.
        biased: whether they have a bias, standard normal, and come from other random numbers.

    Returns:
        The draws.

    Example:
        >>> draw(Config(draws=3), 0, biased=False).x0.shape
        (5, 3)
    """
    random = np.random.default_rng([seed, int(biased)])
    count = config.biased_draws if biased else config.draws
    mu, s_delta = (
        random.choice([-1.0, 1.0], count) * _log_uniform(random, ends, count) for ends in (config.mu, config.s_delta)
    )
    a, bias = _log_uniform(random, config.a, count), random.standard_normal(count) if biased else np.zeros(count)
    x0 = random.standard_normal((config.length, count))
    signs = np.choose(random.integers(0, 3, count), [-np.sign(s_delta), np.sign(s_delta), np.zeros(count)])
    return Draws(np.where(signs == 0, x0, signs * np.abs(x0)), mu, s_delta, a, bias)


def _log_uniform(random: np.random.Generator, ends: tuple[float, float], count: int) -> np.ndarray:
    low, high = np.log(ends)
    return np.exp(random.uniform(low, high, count))


def predicted(draws: Draws) -> np.ndarray:
    """The regime of each configuration by signs.

    Args:
        draws: the configurations.

    Returns:
        (B,).

    Example:
        >>> one = np.ones(1)
        >>> predicted(Draws(np.array([[-1.0]]), one, one, one, 0 * one)).tolist()
        ['slow divergence']
    """
    from ssm.dynamics import regime

    return np.array([regime(x, mu, s) for x, mu, s in zip(draws.x0.T, draws.mu, draws.s_delta, strict=True)])


def run(config: Config, run_dir: Path) -> Result:
    """Simulate all draws of every seed, without and with a bias."""
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    counts: dict[str, list] = {"seed": [], "bias": [], "predicted": [], "simulated": [], "draws": []}
    kept: dict[str, list[np.ndarray]] = {"mu": [], "largest drive": [], "regime": []}
    for seed in config.seeds:
        for biased in (False, True):
            draws = draw(config, seed, biased=biased)
            found, expected = observe(draws.x0, draws.mu, draws.s_delta, draws.a, draws.bias), predicted(draws)
            _count(counts, seed, biased, expected, found.regimes)
            for name, value in _measured(draws, found, expected, biased=biased).items():
                measured[name].append(value)
            if not biased:
                kept["mu"].append(draws.mu)
                kept["largest drive"].append((draws.s_delta * draws.x0).max(axis=0))
                kept["regime"].append(np.array([(*REGIMES, UNDECIDED).index(name) for name in found.regimes]))
    series = {"draws": {name: np.concatenate(values) for name, values in kept.items()}}
    return Result(measured=measured, tables={"regimes": counts}, series=series)


def _measured(draws: Draws, found: Observed, expected: np.ndarray, *, biased: bool) -> dict[str, float]:
    decided = found.regimes != UNDECIDED
    wrong = float((decided & (found.regimes != expected)).sum())
    if biased:
        return {"token_dynamics/bias-keeps-criterion": wrong}
    classes = 2 * (draws.mu > 0) + (draws.s_delta * draws.x0 > 0).any(axis=0)
    return {
        "token_dynamics/phase-diagram": wrong,
        "token_dynamics/abstract-criterion": outside_majority(classes[decided], found.regimes[decided]),
        "token_dynamics/abstract-dichotomy": float(found.finite[decided].mean()) if decided.any() else np.nan,
    }


def outside_majority(classes: np.ndarray, regimes: np.ndarray) -> float:
    """Share of draws that are not in the commonest regime of their class.

    Args:
        classes: (B,), integers.
        regimes: (B,), names.

    Returns:
        The share, NaN without draws.

    Example:
        >>> outside_majority(np.array([0, 0, 0, 1]), np.array(["a", "a", "b", "b"]))
        0.25
    """
    if not classes.size:
        return float("nan")
    common = 0
    for one in np.unique(classes):
        common += np.unique(regimes[classes == one], return_counts=True)[1].max()
    return float(1 - common / classes.size)


def _count(counts: dict[str, list], seed: int, biased: bool, expected: np.ndarray, found: np.ndarray) -> None:
    """Add how many draws are predicted and simulated in each pair of regimes."""
    for prediction in REGIMES:
        for regime in (*REGIMES, UNDECIDED):
            number = int(((expected == prediction) & (found == regime)).sum())
            for column, entry in zip(counts.values(), (seed, biased, prediction, regime, number), strict=True):
                column.append(entry)


def plot(result: StoredResult) -> Figure:
    """Left: the simulated regime over mu and the largest S_Delta x. Right: predicted against simulated, all draws."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=(1.4, 1))
    _scatter(axes[0], result.series["draws"])
    _confusion(axes[1], result.tables["regimes"])
    return figure


def _scatter(axis: Axes, draws: dict[str, np.ndarray]) -> None:
    colours = ("#0072B2", "#E69F00", "#D55E00", "#000000")
    for number, (name, colour) in enumerate(zip((*REGIMES, UNDECIDED), colours, strict=True)):
        there = draws["regime"] == number
        if there.any():
            axis.scatter(draws["mu"][there], draws["largest drive"][there], s=3, color=colour, label=name, linewidths=0)
    axis.set_xscale("symlog", linthresh=1e-3)
    axis.set_yscale("symlog", linthresh=1e-2)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="mu", ylabel="largest S_Delta x of the tokens", title="simulated regime of each draw")
    axis.set_xticks([-1e3, -1, 0, 1, 1e3])
    axis.legend(fontsize=8, markerscale=3, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)


def _confusion(axis: Axes, table: dict[str, list[Any]]) -> None:
    names = (*REGIMES, UNDECIDED)
    numbers = np.zeros((len(REGIMES), len(names)), int)
    for prediction, regime, count in zip(table["predicted"], table["simulated"], table["draws"], strict=True):
        numbers[REGIMES.index(prediction), names.index(regime)] += count
    axis.imshow(numbers > 0, cmap="Blues", vmin=0, vmax=3)
    for (row, column), count in np.ndenumerate(numbers):
        axis.text(column, row, f"{count}", ha="center", va="center")
    axis.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=8)
    axis.set_yticks(range(len(REGIMES)), [name.replace(" ", "\n") for name in REGIMES], fontsize=8)
    axis.set(xlabel="simulated", ylabel="predicted", title="draws, with and without a bias")
