"""On a binary chain a single-layer transformer with tied weights has a plateau; untied, it hardly has one.

Row M2: "Attention with Markov" (arXiv 2402.04161), (p, q) = (0.5, 0.8). The paper's figure shows the tied model stuck
at the entropy of single symbols. In float32 it leaves that plateau in the end, so what is tested is how long it stays:
the first evaluation with a loss below the middle between H(pi) and H_inf. A model that never gets there counts as
leaving at its last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.source_training import Curves

ABOUT = About(
    paper="Attention with Markov (arXiv 2402.04161)",
    source="tied and untied losses at (0.5, 0.8), depth",
    minutes={"smoke": 0.3, "cpu": 3.5, "paper": 10},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The chain, the models and their training."""

    p: float = 0.5
    """probability of 0 -> 1"""
    q: float = 0.8
    """probability of 1 -> 0"""
    length: int = 256
    """symbols of a text"""
    width: int = 8
    """channels"""
    depths: tuple[int, ...] = (1, 2, 4)
    """layers of the tied models, the first of which is compared with the untied one"""
    evaluation_rows: int = 128
    """texts that are evaluated: the standard error of the loss is about 0.003 nats"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch_size=16, eval_every=5))
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("p", "q"):
            require(name, getattr(self, name), 1e-3, below=1)
        require("length", self.length, 2)
        require("width", self.width, 1)
        require("the number of depths", len(self.depths), 1)
        require("the smallest of depths", min(self.depths), 1)
        require("evaluation_rows", self.evaluation_rows, 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        length=16,
        depths=(1,),
        evaluation_rows=4,
        train=TrainConfig(steps=4, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
    "paper": Config(
        seeds=(0, 1, 2, 3, 4),
        length=1024,
        depths=(1, 2, 4, 8),
        evaluation_rows=256,
        train=TrainConfig(steps=500, batch_size=16, eval_every=5),
    ),
}

CLAIMS = (
    Claim(
        "markov_dynamics/M2-plateau-length",
        "single layer: step at which the tied model leaves H(pi) over that of the untied one",
        "above",
        1.5,
        kind="ours",
    ),
    Claim(
        "markov_dynamics/M2-untied-optimal",
        "single layer, untied: last loss minus H_inf (nats per symbol)",
        "within",
        0.0,
        0.01,
    ),
    Claim(
        "markov_dynamics/M2-tied-stuck-untied-fine",
        "single layer, tied: last loss minus H_inf, as a share of H(pi) - H_inf",
        "above",
        0.9,
    ),
    Claim(
        "markov_dynamics/M-depth-escapes",
        "tied: step at which the deepest model leaves H(pi) minus that of the single layer",
        "below",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train the untied model and the tied ones of all depths, for every seed."""
    from experiments.source_training import escape_steps
    from experiments.sources import SwitchingSource

    source = SwitchingSource(1, config.p, config.q)
    low, high = source.entropy_rate(), source.unigram_entropy()
    models = [(False, config.depths[0]), *((True, layers) for layers in config.depths)]
    curves = {(tied, layers): _train(config, run_dir, tied=tied, layers=layers) for tied, layers in models}
    escapes = {name: escape_steps(curve.step, curve.metrics["loss"], high, low) for name, curve in curves.items()}
    columns: dict[str, list] = {"tied": [], "layers": [], "seed": [], "escape": [], "last_loss": []}
    for (tied, layers), curve in curves.items():
        columns["tied"] += [tied] * len(config.seeds)
        columns["layers"] += [layers] * len(config.seeds)
        columns["seed"] += config.seeds
        columns["escape"] += escapes[tied, layers].tolist()
        columns["last_loss"] += curve.metrics["loss"][:, -1].tolist()
    references = {"entropy_rate": [low], "unigram_entropy": [high]}
    return Result(
        measured={**_measured(config, curves, escapes, low, high)},
        tables={"models": columns, "references": references},
        series={_label(*name): {"step": curve.step, **curve.metrics} for name, curve in curves.items()},
    )


def _label(tied: bool, layers: int) -> str:
    return f"{'tied' if tied else 'untied'}, {layers} layers"


def _train(config: Config, run_dir: Path, *, tied: bool, layers: int) -> Curves:
    from experiments.markov_dynamics.chain_transformer import chain_transformer, next_symbol_loss
    from experiments.source_training import evaluation_texts, train_on_source
    from experiments.sources import SwitchingSource

    source = SwitchingSource(1, config.p, config.q)
    model = chain_transformer(config.length, layers=layers, width=config.width, tied=tied)
    loss = next_symbol_loss(model)
    texts = evaluation_texts(source.sample, config.seeds, config.evaluation_rows, config.length)
    label = _label(tied, layers)
    return train_on_source(
        config.train,
        lambda key: model.init(key, texts[0][:1]),
        lambda params, symbols: loss(params["params"], symbols),
        lambda key: source.sample(key, (config.train.batch_size, config.length)),
        run_dir / "training" / label.replace(", ", "-").replace(" ", "-"),
        seeds=config.seeds,
        label=label,
        evaluation=texts,
        measure=lambda params, symbols: {"loss": loss(params["params"], symbols)},
    )


def _measured(
    config: Config,
    curves: dict[tuple[bool, int], Curves],
    escapes: dict[tuple[bool, int], np.ndarray],
    low: float,
    high: float,
) -> dict[str, Sequence[float]]:
    first = config.depths[0]
    last = {name: curve.metrics["loss"][:, -1] for name, curve in curves.items()}
    measured: dict[str, Sequence[float]] = {
        "markov_dynamics/M2-plateau-length": (escapes[True, first] / np.maximum(escapes[False, first], 1)).tolist(),
        "markov_dynamics/M2-untied-optimal": (last[False, first] - low).tolist(),
        "markov_dynamics/M2-tied-stuck-untied-fine": ((last[True, first] - low) / (high - low)).tolist(),
    }
    if len(config.depths) > 1:
        deeper = escapes[True, config.depths[-1]] - escapes[True, first]
        measured["markov_dynamics/M-depth-escapes"] = deeper.astype(float).tolist()
    return measured


def plot(result: StoredResult) -> Figure:
    """Mean loss against updates, one line per model with its range over seeds, and both entropies."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for (name, curve), colour in zip(
        result.series.items(), ("#009E73", "#D55E00", "#E69F00", "#CC79A7", "#56B4E9"), strict=False
    ):
        axis.fill_between(curve["step"], curve["loss"].min(axis=0), curve["loss"].max(axis=0), color=colour, alpha=0.2)
        axis.plot(curve["step"], curve["loss"].mean(axis=0), color=colour, label=name)
    references = result.tables["references"]
    low, high = references["entropy_rate"][0], references["unigram_entropy"][0]
    axis.axhline(high, color="#0072B2", linestyle="--", label="H(pi)")
    axis.axhline(low, color="black", linestyle="--", label="entropy rate")
    axis.set(xlabel="updates", ylabel="nats per symbol", ylim=(low - 0.02, high + 0.06))
    axis.legend(fontsize=8)
    return figure
