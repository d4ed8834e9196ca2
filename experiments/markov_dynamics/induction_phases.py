"""Learning in-context Markov chains goes through phases: uniform, the unigram of the context, then suddenly its bigram.

Row E1: "The Evolution of Statistical Induction Heads" (arXiv 2402.11004). Every sequence has a chain of its own, with
rows from Dir(1, 1). The model is compared, over its training, with the strategies that count symbols or pairs in the
context: by the relative entropy from the model's predictions to theirs, and by the cross-entropy against the chain's
true transition probabilities. Without dropout; the learning rate is constant.

The plateau is the training before the model is nearer to the bigram than to the unigram.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.source_training import Curves

ABOUT = About(
    paper="The Evolution of Statistical Induction Heads (arXiv 2402.11004)",
    source="phases of training, attention",
    minutes={"smoke": 0.3, "cpu": 4},
)


def _training(**changes: Any) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=5e-4, schedule="constant", weight_decay=0.1)
    return TrainConfig(**{"steps": 1500, "batch_size": 64, "eval_every": 25, "optimizer": optimizer, **changes})


@dataclass(frozen=True)
class Config(results.Config):
    """The chains, the model and its training."""

    alphabet: int = 2
    """symbols K"""
    length: int = 100
    """symbols that are read; as many are predicted"""
    width: int = 16
    """channels"""
    evaluation_rows: int = 256
    """sequences that are evaluated"""
    train: TrainConfig = field(default_factory=_training)
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("alphabet", self.alphabet, 2)
        require("length", self.length, 2)
        require("width", self.width, 1)
        require("evaluation_rows", self.evaluation_rows, 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1), length=12, width=4, evaluation_rows=4, train=_training(steps=4, batch_size=2, eval_every=2)
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "markov_dynamics/E1-phases",
        "least relative entropy from the model to the in-context unigram on the plateau (nats per symbol)",
        "below",
        0.03,
    ),
    Claim(
        "markov_dynamics/E1-curves-cross",
        "the smaller one of: how much nearer the unigram is than the bigram at some time on the plateau, and how much "
        "nearer the bigram is at the end (relative entropy, nats per symbol)",
        "above",
        0.0,
    ),
    Claim(
        "markov_dynamics/E1-bigram-reached",
        "last cross-entropy minus that of the in-context bigram on the same chains (nats per symbol)",
        "below",
        0.02,
    ),
    Claim(
        "markov_dynamics/E1-induction-circuit",
        "attention of the first layer on the previous symbol at the end",
        "above",
        0.5,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train one model per seed."""
    curves, references = _train(config, run_dir)
    finals = {name: values[:, -1].tolist() for name, values in curves.metrics.items()}
    return Result(
        measured={**measure(curves.metrics, np.array(references["bigram"]))},
        tables={
            "last": {"seed": list(config.seeds), **finals},
            "references": {"seed": list(config.seeds), **references},
        },
        series={"training": {"step": curves.step, **curves.metrics}},
    )


def _train(config: Config, run_dir: Path) -> tuple[Curves, dict[str, list[float]]]:
    """The curves, and the cross-entropy of each strategy and of the chains themselves on each evaluation set."""
    from experiments.markov_dynamics.in_context_training import evaluation_set, progress, references, train_on_chains
    from experiments.sources import InContextChains

    chains = InContextChains(config.alphabet)
    shape = (config.evaluation_rows, config.length + 1)
    evaluation = [evaluation_set(chains, seed, shape) for seed in config.seeds]
    curves = train_on_chains(
        config.train,
        chains,
        run_dir / "training",
        length=config.length,
        width=config.width,
        seeds=config.seeds,
        label="in-context chains",
        evaluation=evaluation,
        measure=progress,
    )
    return curves, references(evaluation)


def measure(metrics: dict[str, np.ndarray], bigram: np.ndarray) -> dict[str, Sequence[float]]:
    """The values of the claims.

    Args:
        metrics: over training, each (seeds, T).
        bigram: cross-entropy of the in-context bigram, (seeds,).

    Returns:
        claim id -> one value per seed.

    Example:
        >>> metrics = {"to_unigram": np.array([[0.3, 0.02, 0.07]]), "to_bigram": np.array([[0.4, 0.05, 0.01]])}
        >>> metrics |= {"cross_entropy": np.array([[0.7, 0.56, 0.52]]), "previous_token": np.array([[0.1, 0.1, 0.6]])}
        >>> [float(round(values[0], 3)) for values in measure(metrics, np.array([0.51])).values()]
        [0.02, 0.06, 0.01, 0.6]
    """
    unigram, nearer = metrics["to_unigram"], metrics["to_bigram"] - metrics["to_unigram"]
    # Until the first evaluation at which the bigram is nearer; without one, the whole training.
    before = np.cumsum(nearer < 0, axis=1) == 0
    plateau = np.where(before, unigram, np.inf).min(axis=1)
    advantage = np.where(before, nearer, -np.inf).max(axis=1)
    # A model that is nearer to the bigram from the start has no plateau: its distance at the start is what there is.
    plateau = np.where(before.any(axis=1), plateau, unigram[:, 0])
    advantage = np.where(before.any(axis=1), advantage, nearer[:, 0])
    return {
        "markov_dynamics/E1-phases": plateau.tolist(),
        "markov_dynamics/E1-curves-cross": np.minimum(advantage, -nearer[:, -1]).tolist(),
        "markov_dynamics/E1-bigram-reached": (metrics["cross_entropy"][:, -1] - bigram).tolist(),
        "markov_dynamics/E1-induction-circuit": metrics["previous_token"][:, -1].tolist(),
    }


def plot(result: StoredResult) -> Figure:
    """Against updates: cross-entropy with the strategies' own, distances to the strategies, attention."""
    from matplotlib import pyplot as plt

    curve, references = result.series["training"], result.tables["references"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    colours = {"uniform": "#999999", "unigram": "#0072B2", "bigram": "#009E73", "truth": "black"}
    axes[0].plot(curve["step"], curve["cross_entropy"].T, color="#D55E00", linewidth=1)
    for name, colour in colours.items():
        axes[0].axhline(np.mean(references[name]), color=colour, linestyle="--", label=name)
    for name in ("uniform", "unigram", "bigram"):
        axes[1].plot(curve["step"], curve[f"to_{name}"].mean(axis=0), color=colours[name], label=f"to {name}")
    for name, colour in {"previous_token": "#CC79A7", "induction": "#E69F00"}.items():
        axes[2].plot(curve["step"], curve[name].mean(axis=0), color=colour, label=name.replace("_", " "))
    axes[0].set(xlabel="updates", ylabel="nats per symbol", title="cross-entropy against the truth")
    axes[1].set(xlabel="updates", ylabel="nats per symbol", yscale="log", title="relative entropy to a strategy")
    axes[2].set(xlabel="updates", ylabel="attention", ylim=(0, 1), title="first and second layer")
    for axis in axes:
        axis.legend(fontsize=7)
    return figure
