"""How the time on the plateau scales with the length of the texts and the order of the source.

`escape_time` over a grid: transformers of one layer on raw characters of switching sources, p = q = 0.8, of several
orders, whose symbols all depend on one symbol so far back. From order 2 on the unigram and the bigram over characters
both have the loss H(pi), where the plateau is. On the source of order 1, the control, the symbol that matters is the
one that was just read, so there is nothing to look for.

A model leaves the plateau when its loss falls below the middle between H(pi) and H_inf. One that never does counts as
leaving at its last step, so exponents are underestimated where that happens; the table says where.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.tokenization import escape_time
from experiments.training.config import CheckpointConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figure 2a, other lengths and orders (ours)",
    # That of gpu is an estimate: it has not been run.
    minutes={"smoke": 0.3, "cpu": 3.5, "gpu": 25},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The grid, the model and its training."""

    orders: tuple[int, ...] = (1, 2, 3, 4)
    """orders of the switching source, rising"""
    lengths: tuple[int, ...] = (32, 64, 128)
    """symbols of a text, rising"""
    p: float = 0.8
    """probability of 0 -> 1"""
    q: float = 0.8
    """probability of 1 -> 0"""
    layers: int = 1
    """blocks"""
    width: int = 20
    """channels"""
    evaluation_rows: int = 64
    """texts that are evaluated"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=800, batch_size=16, eval_every=10))
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("orders", "lengths"):
            values = getattr(self, name)
            require(f"the number of {name}", len(values), 1)
            if sorted(set(values)) != list(values):
                raise ValueError(f"{name}: got {values}, expected rising values")
        for order in self.orders:
            self.at_order(order)

    def at_order(self, order: int) -> escape_time.Config:
        """The configuration of `escape_time` at one order."""
        return escape_time.Config(
            seeds=self.seeds,
            order=order,
            p=self.p,
            q=self.q,
            lengths=self.lengths,
            layers=self.layers,
            width=self.width,
            evaluation_rows=self.evaluation_rows,
            train=self.train,
        )


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        orders=(2,),
        lengths=(8,),
        width=8,
        evaluation_rows=4,
        train=TrainConfig(steps=4, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
    "gpu": Config(
        seeds=(0, 1, 2, 3, 4),
        orders=(1, 2, 4, 8),
        lengths=(64, 128, 256, 512, 1024),
        evaluation_rows=256,
        train=TrainConfig(steps=4000, batch_size=16, eval_every=10, checkpoint=CheckpointConfig(every=1000)),
    ),
}

CLAIMS = (
    Claim(
        "tokenization/F2c-escape-exponent",
        "exponent with which the step at which the plateau is left grows with the length: least over orders from 2 on",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "tokenization/F2c-escape-with-order",
        "longest texts: least growth of the step at which the plateau is left, from one order to the next, from 2 on",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "tokenization/F2c-no-escape-needed",
        "longest texts: step at which the plateau is left at order 1 minus that at order 2",
        "below",
        0.0,
        kind="control",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train one model per order, length and seed."""
    from experiments.source_training import escape_steps
    from experiments.sources import SwitchingSource
    from experiments.tokenization.scoring import columns

    rows, series, escapes = [], {}, {}
    source = SwitchingSource(1, config.p, config.q)  # both entropies are the same for all orders
    low, high = source.entropy_rate(), source.unigram_entropy()
    for order in config.orders:
        for length in config.lengths:
            curves = escape_time.train_at_length(config.at_order(order), run_dir / f"order-{order}", length)
            loss = curves.metrics["loss"]
            series[f"order {order}, length {length}"] = {"step": curves.step, "loss": loss}
            escapes[order, length] = found = escape_steps(curves.step, loss, high, low)
            left = np.any(loss < (low + high) / 2, axis=1).tolist()
            rows += [
                {"order": order, "length": length, "seed": seed, "escape": step, "left": ever, "last_loss": last}
                for seed, step, ever, last in zip(config.seeds, found.tolist(), left, loss[:, -1].tolist(), strict=True)
            ]
    references = {"entropy_rate": [low], "unigram_entropy": [high]}
    tables = {"escapes": columns(rows), "references": references}
    return Result(measured={**measure(escapes)}, tables=tables, series=series)


def exponents(lengths: list[int], escapes: np.ndarray) -> np.ndarray:
    """Slopes of log(escape) against log(length), by least squares.

    Args:
        lengths: two or more.
        escapes: (lengths, seeds) steps; 0 counts as 1.

    Returns:
        (seeds,).

    Example:
        >>> exponents([10, 20, 40], np.array([[3], [12], [48]])).round(3).tolist()
        [2.0]
    """
    return np.polyfit(np.log(lengths), np.log(np.maximum(escapes, 1)), 1)[0]


def measure(escapes: dict[tuple[int, int], np.ndarray]) -> dict[str, list[float]]:
    """The values of the claims, as far as their orders and lengths were run.

    Args:
        escapes: (order, length), rising -> steps (seeds,).

    Returns:
        claim id -> one value per seed.
    """
    orders, lengths = (sorted({key[i] for key in escapes}) for i in (0, 1))
    measured = {}
    hidden = [order for order in orders if order > 1]
    if hidden and len(lengths) > 1:
        slopes = [exponents(lengths, np.stack([escapes[order, length] for length in lengths])) for order in hidden]
        measured["tokenization/F2c-escape-exponent"] = np.min(slopes, axis=0).tolist()
    if len(hidden) > 1:
        growth = np.diff([escapes[order, lengths[-1]] for order in hidden], axis=0).min(axis=0)
        measured["tokenization/F2c-escape-with-order"] = growth.astype(float).tolist()
    if {1, 2} <= set(orders):
        earlier = escapes[1, lengths[-1]] - escapes[2, lengths[-1]]
        measured["tokenization/F2c-no-escape-needed"] = earlier.astype(float).tolist()
    return measured


def plot(result: StoredResult) -> Figure:
    """Left: loss against updates on the longest texts. Right: escape step against length, one colour per order."""
    from matplotlib import pyplot as plt

    orders, lengths, references = result.config["orders"], result.config["lengths"], result.tables["references"]
    table = {name: np.array(column) for name, column in result.tables["escapes"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for order, colour in zip(orders, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(orders))), strict=True):
        curve, here = result.series[f"order {order}, length {lengths[-1]}"], table["order"] == order
        axes[0].plot(curve["step"], curve["loss"].T, color=colour, linewidth=1)[0].set_label(f"order {order}")
        steps = np.maximum(table["escape"], 1)
        for left, marker in ((True, "o"), (False, "^")):
            chosen = here & (table["left"] == left)
            axes[1].loglog(table["length"][chosen], steps[chosen], marker, color=colour, markersize=4)
        means = [np.exp(np.log(steps[here & (table["length"] == length)]).mean()) for length in lengths]
        axes[1].loglog(lengths, means, color=colour, label=f"order {order}")
    axes[0].axhline(references["unigram_entropy"][0], color="#0072B2", linestyle="--", label="H(pi)")
    axes[0].axhline(references["entropy_rate"][0], color="black", linestyle="--", label="entropy rate")
    axes[0].set(xlabel="updates", ylabel="nats per symbol", title=f"texts of {lengths[-1]} characters")
    axes[1].set(xlabel="symbols of a text", ylabel="updates on the plateau (triangle: all)")
    for axis in axes:
        axis.legend(fontsize=7)
    return figure
