"""How long a transformer on raw characters stays on the unigram plateau grows with the length of its texts.

Row F2c, our addition to figure 2a of arXiv 2404.08335: the order-2 switching source, p = q = 0.8, one layer, and texts
of several lengths. On characters of this source the unigram and the bigram both have the loss H(pi), so the plateau is
where both are. A model leaves it when its loss falls below the middle between H(pi) and H_inf; one that never does
counts as leaving at its last step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.source_training import Curves

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figure 2a, other lengths (ours)",
    minutes={"smoke": 0.3, "cpu": 1},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the lengths, the model and its training."""

    order: int = 2
    """order of the switching source"""
    p: float = 0.8
    """probability of 0 -> 1"""
    q: float = 0.8
    """probability of 1 -> 0"""
    lengths: tuple[int, ...] = (64, 128, 256)
    """symbols of a text, rising"""
    layers: int = 1
    """blocks"""
    width: int = 20
    """channels"""
    evaluation_rows: int = 64
    """texts that are evaluated"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch_size=16, eval_every=10))
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("order", self.order, 1)
        for name in ("p", "q"):
            require(name, getattr(self, name), 1e-3, below=1)
        require("the number of lengths", len(self.lengths), 1)
        require("the smallest of lengths", min(self.lengths), 1)
        if sorted(set(self.lengths)) != list(self.lengths):
            raise ValueError(f"lengths: got {self.lengths}, expected rising values")
        for name in ("layers", "width", "evaluation_rows"):
            require(name, getattr(self, name), 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        lengths=(8, 16),
        width=8,
        evaluation_rows=4,
        train=TrainConfig(steps=4, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/F2c-escape-time",
        "least growth of the step at which the plateau is left from one length to the next longer one",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "tokenization/F2c-escape-at-128",
        "step at which the plateau is left with texts of 128 symbols",
        "below",
        400.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train one model per length and seed."""
    from experiments.source_training import escape_steps
    from experiments.sources import SwitchingSource

    source = SwitchingSource(config.order, config.p, config.q)
    low, high = source.entropy_rate(), source.unigram_entropy()
    curves = {length: train_at_length(config, run_dir, length) for length in config.lengths}
    escapes = {length: escape_steps(curve.step, curve.metrics["loss"], high, low) for length, curve in curves.items()}
    columns: dict[str, list] = {"length": [], "seed": [], "escape": [], "last_loss": []}
    for length, curve in curves.items():
        columns["length"] += [length] * len(config.seeds)
        columns["seed"] += config.seeds
        columns["escape"] += escapes[length].tolist()
        columns["last_loss"] += curve.metrics["loss"][:, -1].tolist()
    return Result(
        measured={**measure(escapes)},
        tables={"escapes": columns, "references": {"entropy_rate": [low], "unigram_entropy": [high]}},
        series={f"length {length}": {"step": curve.step, **curve.metrics} for length, curve in curves.items()},
    )


def train_at_length(config: Config, run_dir: Path, length: int) -> Curves:
    """Train one model per seed on texts of one length.

    Args:
        config: everything else.
        run_dir: for the training, in a folder of its own.
        length: symbols of a text.

    Returns:
        The curves, with the metric "loss".
    """
    import jax.numpy as jnp

    from experiments.source_training import evaluation_texts, train_on_source
    from experiments.sources import SwitchingSource
    from experiments.tokenization.transformer import negative_log_likelihood, transformer

    source = SwitchingSource(config.order, config.p, config.q)
    model = transformer(2, length, layers=config.layers, width=config.width, heads=1)

    def loss(params: Any, symbols: Any) -> Any:
        batch = {"tokens": symbols, "mask": jnp.ones(symbols.shape, bool)}
        return negative_log_likelihood(model, params, batch).mean()

    texts = evaluation_texts(source.sample, config.seeds, config.evaluation_rows, length)
    return train_on_source(
        config.train,
        lambda key: model.init(key, texts[0][:1]),
        loss,
        lambda key: source.sample(key, (config.train.batch_size, length)),
        run_dir / "training" / f"length-{length}",
        seeds=config.seeds,
        label=f"length {length}",
        evaluation=texts,
        measure=lambda params, symbols: {"loss": loss(params, symbols)},
    )


def measure(escapes: dict[int, np.ndarray]) -> dict[str, list[float]]:
    """The values of the claims, as far as their lengths were run.

    Args:
        escapes: length, rising -> steps (seeds,).

    Returns:
        claim id -> one value per seed.

    Example:
        >>> measure({64: np.array([40, 50]), 128: np.array([90, 80]), 256: np.array([100, 70])})
        {'tokenization/F2c-escape-time': [10.0, -10.0], 'tokenization/F2c-escape-at-128': [90.0, 80.0]}
    """
    measured = {}
    if len(escapes) > 1:
        growth = np.diff(list(escapes.values()), axis=0).min(axis=0)
        measured["tokenization/F2c-escape-time"] = growth.astype(float).tolist()
    if 128 in escapes:
        measured["tokenization/F2c-escape-at-128"] = escapes[128].astype(float).tolist()
    return measured


def plot(result: StoredResult) -> Figure:
    """Left: loss against updates, one colour per length, one line per seed. Right: escape step against length."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    lengths, references = result.config["lengths"], result.tables["references"]
    for length, colour in zip(lengths, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(lengths))), strict=True):
        curve = result.series[f"length {length}"]
        lines = axes[0].plot(curve["step"], curve["loss"].T, color=colour, linewidth=1)
        lines[0].set_label(f"{length} symbols")
    axes[0].axhline(references["unigram_entropy"][0], color="#0072B2", linestyle="--", label="H(pi): unigram, bigram")
    axes[0].axhline(references["entropy_rate"][0], color="black", linestyle="--", label="entropy rate")
    axes[0].set(xlabel="updates", ylabel="nats per symbol", title="one layer on characters")
    axes[0].legend(fontsize=7)
    table = result.tables["escapes"]
    axes[1].loglog(table["length"], np.maximum(table["escape"], 1), "o", color="#D55E00")
    axes[1].set(xlabel="symbols of a text", ylabel="updates until the plateau is left")
    return figure
