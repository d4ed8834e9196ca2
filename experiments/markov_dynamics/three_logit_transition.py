"""The abrupt transition to in-context learning in a model of three numbers, with and without labels to spare.

Row R2: the phenomenological model of arXiv 2312.03002 in our reconstruction (`three_logits`). With more labels than
pairs in the context the loss falls to log N, the loss of a random label of the context, and then abruptly; with as
many labels as pairs there is nothing to learn first, and the transition is late or does not come.

A transition that does not come within the training counts as coming at its last step, which favours the second case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Abrupt in-context learning, Reddy (arXiv 2312.03002)",
    source="minimal model",
    minutes={"smoke": 0.1, "cpu": 0.03},
)


@dataclass(frozen=True)
class Config(results.Config):
    """Sizes and descent."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """one start each"""
    items: int = 8
    """pairs in the context, N"""
    labels: tuple[int, ...] = (8, 9, 16, 32)
    """numbers of labels L, rising; the first is N"""
    rate: float = 0.1
    """step size of gradient descent"""
    initial_scale: float = 0.01
    """standard deviation of the three numbers at the start"""
    steps: int = 20_000
    """of gradient descent"""
    kept: int = 2000
    """points of each curve that are stored"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("items", self.items, 2)
        require("the number of labels", len(self.labels), 2)
        if self.labels[0] != self.items or list(self.labels) != sorted(set(self.labels)):
            raise ValueError(f"labels: got {self.labels}, expected rising numbers that begin with items = {self.items}")
        require("rate", self.rate, 1e-9)
        require("initial_scale", self.initial_scale, 1e-9)
        require("steps", self.steps, 2)
        require("kept", self.kept, 2)


PRESETS = {"smoke": Config(seeds=(0, 1), steps=1500, kept=100), "cpu": Config()}

CLAIMS = (
    Claim(
        "markov_dynamics/R2-more-labels-than-items",
        "step of the transition with the most labels over that with L = N",
        "below",
        0.25,
        kind="ours",
    ),
    Claim(
        "markov_dynamics/R-minimal-model",
        "most labels: share of the steps before the transition that lie between 0.9 log N and half of log N",
        "below",
        0.2,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Descent for every number of labels from the same starts."""
    import jax.numpy as jnp

    from experiments.markov_dynamics.three_logits import losses_of_descent

    draws = [np.random.default_rng(seed).standard_normal(3) for seed in config.seeds]
    starts = jnp.asarray(config.initial_scale * np.stack(draws), jnp.float32)
    curves = {
        labels: np.asarray(
            losses_of_descent(starts, items=config.items, labels=labels, rate=config.rate, steps=config.steps)
        )
        for labels in config.labels
    }
    columns: dict[str, list] = {"labels": [], "seed": [], "transition": [], "left_plateau": [], "last_loss": []}
    for labels, curve in curves.items():
        times = first_below(curve, 0.5 * np.log(config.items))
        leaving = last_above(curve, 0.9 * np.log(config.items), times)
        columns["labels"] += [labels] * len(config.seeds)
        columns["seed"] += config.seeds
        columns["transition"] += [int(step) if step < config.steps else None for step in times]
        columns["left_plateau"] += leaving.tolist()
        columns["last_loss"] += curve[-1].tolist()
    kept = np.unique(np.linspace(0, config.steps - 1, config.kept).astype(int))
    series = {f"{labels} labels": {"step": kept, "loss": curve[kept]} for labels, curve in curves.items()}
    return Result(measured={**_measured(config, curves)}, tables={"transitions": columns}, series=series)


def first_below(curves: np.ndarray, level: float) -> np.ndarray:
    """First step at which each curve is below a level, the number of steps if it never is.

    Args:
        curves: (steps, curves).
        level: of the loss.

    Returns:
        (curves,) integers.

    Example:
        >>> first_below(np.array([[3.0, 3.0], [1.0, 2.0]]), 1.5).tolist()
        [1, 2]
    """
    under = curves < level
    return np.where(under.any(axis=0), under.argmax(axis=0), len(curves))


def last_above(curves: np.ndarray, level: float, before: np.ndarray) -> np.ndarray:
    """Last step before another one at which each curve is at or above a level.

    Args:
        curves: (steps, curves).
        level: of the loss.
        before: (curves,) steps.

    Returns:
        (curves,) integers, -1 where there is none.

    Example:
        >>> last_above(np.array([[3.0], [2.0], [1.0], [3.0]]), 2.0, np.array([3])).tolist()
        [1]
    """
    steps = np.arange(len(curves))[:, None]
    return np.where((curves >= level) & (steps < before), steps, -1).max(axis=0)


def _measured(config: Config, curves: dict[int, np.ndarray]) -> dict[str, Sequence[float]]:
    level = np.log(config.items)
    few, many = (first_below(curves[labels], 0.5 * level) for labels in (config.labels[0], config.labels[-1]))
    leaving = last_above(curves[config.labels[-1]], 0.9 * level, many)
    return {
        "markov_dynamics/R2-more-labels-than-items": (many / few).tolist(),
        "markov_dynamics/R-minimal-model": ((many - leaving) / np.maximum(many, 1)).tolist(),
    }


def plot(result: StoredResult) -> Figure:
    """Loss against steps, one colour per number of labels, one line per seed, with log N."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(result.config["labels"])))
    for labels, colour in zip(result.config["labels"], colours, strict=True):
        curve = result.series[f"{labels} labels"]
        lines = axis.plot(curve["step"] + 1, curve["loss"], color=colour, linewidth=1)
        lines[0].set_label(f"L = {labels}")
    items = result.config["items"]
    axis.axhline(np.log(items), color="black", linestyle="--", linewidth=1, label=f"log N, N = {items}")
    axis.set(xscale="log", xlabel="steps of gradient descent", ylabel="loss, nats", title="three logits")
    axis.legend(fontsize=8)
    return figure
