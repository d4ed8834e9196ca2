"""The shorter the view of attention, the sooner a single-layer transformer learns an order-2 chain.

Row M3: the masking figure of "Attention with Markov" (arXiv 2402.04161). Order-2 switching source, (p, q) = (0.2, 0.3):
the next symbol depends on the one before the last alone. Position i sees j with 0 <= i - j <= W. With W = 1 the right
position is one of two and is found at once; with a long view the loss stays near H(pi) for the whole training.
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
    source="order-2 masking figure",
    minutes={"smoke": 0.3, "cpu": 3.5},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the windows, the model and its training."""

    p: float = 0.2
    """probability of 0 -> 1, two places later"""
    q: float = 0.3
    """probability of 1 -> 0, two places later"""
    windows: tuple[int, ...] = (1, 2, 5, 20, 0)
    """furthest position back that is seen, rising; 0, as the last one, sees all"""
    length: int = 256
    """symbols of a text"""
    width: int = 16
    """channels"""
    layers: int = 1
    """blocks"""
    evaluation_rows: int = 128
    """texts that are evaluated: the standard error of the loss is about 0.003 nats"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch_size=16, eval_every=20))
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("p", "q"):
            require(name, getattr(self, name), 1e-3, below=1)
        require("the number of windows", len(self.windows), 1)
        limited = [window for window in self.windows if window]
        if 0 in self.windows[:-1] or limited != sorted(set(limited)) or min(self.windows) < 0:
            raise ValueError(f"windows: got {self.windows}, expected rising numbers, and 0 as the last one only")
        require("length", self.length, 3)
        for name in ("width", "layers", "evaluation_rows"):
            require(name, getattr(self, name), 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        windows=(2, 0),
        length=16,
        width=8,
        evaluation_rows=4,
        train=TrainConfig(steps=4, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "markov_dynamics/M3-memory-mask-immediate",
        "windows 1 and 2: last loss minus H_inf, the larger one in size (nats per symbol)",
        "within",
        0.0,
        0.01,
    ),
    Claim(
        "markov_dynamics/M3-memory-mask-monotone",
        "least rise of the last loss from one window of 2 or more to the next longer one (nats per symbol)",
        "above",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train one model per window and seed."""
    from experiments.sources import SwitchingSource

    source = SwitchingSource(2, config.p, config.q)
    curves = {window: _train(config, run_dir, window) for window in config.windows}
    last = {window: curve.metrics["loss"][:, -1] for window, curve in curves.items()}
    columns: dict[str, list] = {"window": [], "seed": [], "last_loss": []}
    for window, losses in last.items():
        columns["window"] += [window] * len(config.seeds)
        columns["seed"] += config.seeds
        columns["last_loss"] += losses.tolist()
    references = {"entropy_rate": [source.entropy_rate()], "unigram_entropy": [source.unigram_entropy()]}
    return Result(
        measured={**measure(config.windows, last, source.entropy_rate())},
        tables={"windows": columns, "references": references},
        series={name_of(window): {"step": curve.step, **curve.metrics} for window, curve in curves.items()},
    )


def name_of(window: int) -> str:
    """How a window is called.

    Args:
        window: 0 sees all.

    Returns:
        Its name.

    Example:
        >>> name_of(5), name_of(0)
        ('window 5', 'all')
    """
    return f"window {window}" if window else "all"


def _train(config: Config, run_dir: Path, window: int) -> Curves:
    from experiments.markov_dynamics.chain_transformer import chain_transformer, next_symbol_loss
    from experiments.source_training import evaluation_texts, train_on_source
    from experiments.sources import SwitchingSource

    source = SwitchingSource(2, config.p, config.q)
    model = chain_transformer(config.length, layers=config.layers, width=config.width, window=window)
    loss = next_symbol_loss(model)
    texts = evaluation_texts(source.sample, config.seeds, config.evaluation_rows, config.length)
    return train_on_source(
        config.train,
        lambda key: model.init(key, texts[0][:1]),
        lambda params, symbols: loss(params["params"], symbols),
        lambda key: source.sample(key, (config.train.batch_size, config.length)),
        run_dir / "training" / name_of(window).replace(" ", "-"),
        seeds=config.seeds,
        label=name_of(window),
        evaluation=texts,
        measure=lambda params, symbols: {"loss": loss(params["params"], symbols)},
    )


def measure(windows: Sequence[int], last: dict[int, np.ndarray], entropy_rate: float) -> dict[str, list[float]]:
    """The values of the claims, as far as their windows were run.

    Args:
        windows: in rising order, 0 last.
        last: window -> last losses (seeds,).
        entropy_rate: H_inf.

    Returns:
        claim id -> one value per seed.

    Example:
        >>> losses = {1: np.array([0.5]), 2: np.array([0.51]), 0: np.array([0.6])}
        >>> {name[19:]: np.round(values, 3).tolist() for name, values in measure((1, 2, 0), losses, 0.505).items()}
        {'memory-mask-immediate': [-0.005], 'memory-mask-monotone': [0.09]}
    """
    measured = {}
    if {1, 2} <= set(windows):
        short = np.stack([last[1], last[2]]) - entropy_rate
        largest = np.abs(short).argmax(axis=0)
        measured["markov_dynamics/M3-memory-mask-immediate"] = short[largest, np.arange(short.shape[1])].tolist()
    longer = [last[window] for window in windows if window != 1]
    if len(longer) > 1:
        measured["markov_dynamics/M3-memory-mask-monotone"] = np.diff(longer, axis=0).min(axis=0).tolist()
    return measured


def plot(result: StoredResult) -> Figure:
    """Left: mean loss against updates for each window. Right: last loss against window, one point per seed."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    windows = result.config["windows"]
    for window, colour in zip(windows, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(windows))), strict=True):
        curve = result.series[name_of(window)]
        axes[0].plot(curve["step"], curve["loss"].mean(axis=0), color=colour, label=name_of(window))
    place = {window: i for i, window in enumerate(windows)}
    table = result.tables["windows"]
    axes[1].plot([place[window] for window in table["window"]], table["last_loss"], "o", color="#D55E00")
    axes[1].set_xticks(range(len(windows)), [name_of(window) for window in windows], rotation=30)
    references = result.tables["references"]
    for axis in axes:
        axis.axhline(references["unigram_entropy"][0], color="#0072B2", linestyle="--", label="H(pi)")
        axis.axhline(references["entropy_rate"][0], color="black", linestyle="--", label="entropy rate")
    axes[0].set(xlabel="updates", ylabel="nats per symbol")
    axes[1].set(xlabel="view of the attention", title="last loss")
    axes[0].legend(fontsize=7)
    return figure
