"""Where gradient descent ends in the two-parameter model: the entropy rate, or the unigram entropy for good.

The canonical model of a single-layer transformer with tied weights (arXiv 2402.04161 and 2406.03072). On the line
e = 0 it predicts the stationary law; a curve of global minima predicts the chain. Gradient flow conserves an energy,
whose level through the saddle separates what is trapped from what escapes. The trap is genuine here, while full
transformers with tied weights leave their plateau in the end.

A start counts as decided if its last loss is within a tenth of the gap from one of the two entropies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.markov_dynamics.reduced_model import SADDLE, descend, energy, loss, trapped
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Attention with Markov (arXiv 2402.04161)",
    source="canonical two-parameter model",
    minutes={"smoke": 0.1, "cpu": 0.1},
)


@dataclass(frozen=True)
class Config(results.Config):
    """Chains, starts and descent."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one set of starts each"""
    chains: tuple[tuple[float, float], ...] = ((0.1, 0.1), (0.2, 0.3), (0.5, 0.8), (0.8, 0.9))
    """(p, q), on both sides of p + q = 1"""
    starts: int = 100
    """starts of each seed and chain, for each of the two laws"""
    extent: float = 1.5
    """far starts have e and w uniform in [-extent, extent]"""
    initial_scale: float = 0.01
    """standard deviation of e and w of small starts"""
    rate: float = 0.01
    """step size"""
    steps: int = 40_000
    """of gradient descent"""
    grid: int = 60
    """points of the landscape along each axis"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("the number of chains", len(self.chains), 1)
        for p, q in self.chains:
            require("each probability of chains", min(p, q), 1e-3)
            require("each probability of chains", max(p, q), 0, below=1)
            if abs(p + q - 1) < 1e-9:
                raise ValueError(f"chains: got p + q = 1 for {(p, q)}, expected a chain with memory")
        for name in ("starts", "steps", "grid"):
            require(name, getattr(self, name), 1)
        for name in ("extent", "initial_scale", "rate"):
            require(name, getattr(self, name), 1e-9)


PRESETS = {"smoke": Config(seeds=(0, 1), starts=10, steps=2000, rate=0.05, grid=12), "cpu": Config()}

CLAIMS = (
    Claim(
        "markov_dynamics/M1-landscape",
        "largest distance of the loss from H_inf on the curve of global minima and from H(pi) on e = 0 (nats)",
        "below",
        1e-9,
        deterministic=True,
    ),
    Claim(
        "markov_dynamics/M1-minima-and-maxima",
        "points of the line e = 0 that are a minimum where a maximum is predicted, or the reverse",
        "below",
        0.0,
        deterministic=True,
    ),
    Claim(
        "markov_dynamics/M1-conserved-energy",
        "change of the energy along a descent from a far start, largest over starts and chains",
        "below",
        0.05,
    ),
    Claim(
        "markov_dynamics/M1-basins",
        "far starts that are decided and end elsewhere than their energy says",
        "below",
        0.0,
    ),
    Claim(
        "markov_dynamics/M1-initialisation",
        "small starts that are decided and are trapped for p + q < 1, or escape for p + q > 1",
        "below",
        0.0,
    ),
)


KINDS = ("far", "small")


def run(config: Config, run_dir: Path) -> Result:
    """The landscape, and both kinds of starts for every seed and chain."""
    rows = [row for kind in KINDS for row in _rows(config, kind)]
    axis = np.linspace(-config.extent, config.extent, config.grid)
    grids = {f"p {p:g} q {q:g}": {"loss": loss(axis[None], axis[:, None], p, q)} for p, q in config.chains}
    return Result(
        measured={**_measured(config, rows)},
        tables={"starts": {name: [row[name] for row in rows] for name in rows[0]}},
        series={"axis": {"value": axis}, **grids},
    )


def _rows(config: Config, kind: str) -> list[dict[str, Any]]:
    """How the starts of one kind end, one row per seed and chain; all descend at once."""
    e, w = np.stack([_starts(config, seed, kind) for seed in config.seeds], axis=1)
    p, q = np.array(config.chains).T[..., None]
    last_e, last_w = descend(e, w, p, q, rate=config.rate, steps=config.steps)
    drift, expected = np.abs(energy(last_e, last_w) - energy(e, w)), trapped(e, w, p, q)
    last, rows = loss(last_e, last_w, p, q), []
    for s, seed in enumerate(config.seeds):
        for c, (p, q) in enumerate(config.chains):
            stayed, decided = told(last[s, c], p, q)
            rows.append(
                {
                    "seed": seed,
                    "p": p,
                    "q": q,
                    "kind": kind,
                    "starts": config.starts,
                    "decided": int(decided.sum()),
                    "trapped": int((decided & stayed).sum()),
                    "wrong": int((decided & (stayed != expected[s, c])).sum()),
                    "wrong_side": int((decided & (stayed != (p + q > 1))).sum()),
                    "drift": float(drift[s, c].max()),
                }
            )
    return rows


def _starts(config: Config, seed: int, kind: str) -> np.ndarray:
    """e and w of one seed, (2, chains, starts)."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    shape = (2, len(config.chains), config.starts)
    if kind == "far":
        return random.uniform(-config.extent, config.extent, shape)
    return config.initial_scale * random.standard_normal(shape)


def told(last: np.ndarray, p: float, q: float) -> tuple[np.ndarray, np.ndarray]:
    """What a last loss says.

    Args:
        last: losses.
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.

    Returns:
        Whether it is nearer to H(pi) than to H_inf, and whether it is within a tenth of the gap from either.

    Example:
        >>> [part.tolist() for part in told(np.array([0.545, 0.6, 0.673]), 0.2, 0.3)]
        [[False, False, True], [True, False, True]]
    """
    low, high = entropies(p, q)
    share = (last - low) / (high - low)
    return share > 0.5, (np.abs(share) < 0.1) | (np.abs(share - 1) < 0.1)


def entropies(p: float, q: float) -> tuple[float, float]:
    """H_inf and H(pi) of the chain.

    Args:
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.

    Returns:
        Nats per symbol.

    Example:
        >>> [round(value, 6) for value in entropies(0.5, 0.8)]
        [0.619015, 0.666278]
    """

    def binary(x: float) -> float:
        return float(-x * np.log(x) - (1 - x) * np.log(1 - x))

    return (q * binary(p) + p * binary(q)) / (p + q), binary(p / (p + q))


def exact_errors(p: float, q: float) -> float:
    """Largest distance of the loss from H_inf on the curve of global minima, and from H(pi) on e = 0.

    The curve is A = log((1 - p)(1 - q) / (p q)), so that e^2 = A / (1 + 2 w |w|), where that is positive.

    Args:
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.

    Returns:
        Nats.

    Example:
        >>> exact_errors(0.2, 0.3) < 1e-12
        True
    """
    low, high = entropies(p, q)
    w = np.linspace(-3, 3, 121)
    squared = np.log((1 - p) * (1 - q) / (p * q)) / (1 + 2 * w * np.abs(w))
    on = squared > 0
    curve = loss(np.sqrt(squared[on]), w[on], p, q)
    return float(max(np.abs(curve - low).max(), np.abs(loss(0.0, w, p, q) - high).max()))


def misjudged(p: float, q: float, step: float = 1e-3) -> int:
    """Points of e = 0 from which a small step in e changes the loss the wrong way.

    Predicted: p + q < 1 gives minima for w < -1/sqrt(2) and maxima above; p + q > 1 the reverse.

    Args:
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.
        step: in e.

    Returns:
        Their number of 120.

    Example:
        >>> misjudged(0.2, 0.3), misjudged(0.5, 0.8)
        (0, 0)
    """
    w = np.linspace(-2, 2, 121)
    w = w[np.abs(w - SADDLE) > 1e-2]
    rises = loss(step, w, p, q) > loss(0.0, w, p, q)
    return int((rises != ((w < SADDLE) == (p + q < 1))).sum())


def _measured(config: Config, rows: list[dict[str, Any]]) -> dict[str, Sequence[float]]:
    def over(seed: int, kind: str, name: str) -> list[Any]:
        return [row[name] for row in rows if row["seed"] == seed and row["kind"] == kind]

    return {
        "markov_dynamics/M1-landscape": [max(exact_errors(p, q) for p, q in config.chains)],
        "markov_dynamics/M1-minima-and-maxima": [float(sum(misjudged(p, q) for p, q in config.chains))],
        "markov_dynamics/M1-conserved-energy": [max(over(seed, "far", "drift")) for seed in config.seeds],
        "markov_dynamics/M1-basins": [float(sum(over(seed, "far", "wrong"))) for seed in config.seeds],
        "markov_dynamics/M1-initialisation": [float(sum(over(seed, "small", "wrong_side"))) for seed in config.seeds],
    }


def plot(result: StoredResult) -> Figure:
    """One landscape per chain: loss over (w, e), the level of the saddle's energy, the curve of global minima."""
    from matplotlib import pyplot as plt

    axis, chains = result.series["axis"]["value"], result.config["chains"]
    figure, panels = plt.subplots(1, len(chains), figsize=(3.2 * len(chains), 3.2), layout="constrained", squeeze=False)
    w, e = np.meshgrid(axis, axis, indexing="ij")
    with np.errstate(divide="ignore", invalid="ignore"):
        level = energy(e, w)
    for panel, (p, q) in zip(panels[0], chains, strict=True):
        low, high = entropies(p, q)
        values = result.series[f"p {p:g} q {q:g}"]["loss"]
        image = panel.contourf(w, e, values, levels=np.linspace(low, high + (high - low), 15), extend="max")
        panel.contour(w, e, np.where(w < 0, level, np.nan), levels=[-(1 + np.log(2)) / 2], colors="white")
        panel.plot(SADDLE, 0, "o", color="white")
        panel.set(xlabel="w", ylabel="e", title=f"p = {p:g}, q = {q:g}")
        figure.colorbar(image, ax=panel, ticks=[low, high], format="%.3f")
    return figure
