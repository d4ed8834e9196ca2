"""Chains for which the unigram of the context is optimal are a stumbling block on the way to its bigram.

Row E2: "The Evolution of Statistical Induction Heads" (arXiv 2402.11004). On doubly stochastic chains, whose symbols
are all equally frequent, counting symbols is no use. Trained on those alone a model learns the bigram; with a quarter
of chains with equal rows, for which counting symbols is all there is, it is said to learn it later, although only the
doubly stochastic sequences are counted. A model has learnt it when its cross-entropy on doubly stochastic chains is
below the middle between those of the in-context unigram and bigram; one that never gets there counts as doing so at its
last step. The same models are evaluated on chains with rows from Dir(1, ..., 1), which they never saw.
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
    source="doubly stochastic figure",
    minutes={"smoke": 0.4, "cpu": 3},
)


def _training(**changes: Any) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="constant", weight_decay=0.1)
    return TrainConfig(**{"steps": 800, "batch_size": 64, "eval_every": 25, "optimizer": optimizer, **changes})


@dataclass(frozen=True)
class Config(results.Config):
    """The chains, the model and its training."""

    alphabet: int = 3
    """symbols K"""
    share: float = 0.25
    """share of chains with equal rows in the mixture"""
    length: int = 100
    """symbols that are read; as many are predicted"""
    width: int = 16
    """channels"""
    evaluation_rows: int = 256
    """sequences of each kind that are evaluated"""
    train: TrainConfig = field(default_factory=_training)
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("alphabet", self.alphabet, 2)
        require("share", self.share, 1e-3, below=1)
        require("length", self.length, 2)
        require("width", self.width, 1)
        require("evaluation_rows", self.evaluation_rows, 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        alphabet=2,
        length=12,
        width=4,
        evaluation_rows=4,
        train=_training(steps=4, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "markov_dynamics/E2-mixture-delays",
        "doubly stochastic sequences until the bigram is learnt: with the mixture minus without, over those without",
        "above",
        0.0,
    ),
    Claim(
        "markov_dynamics/E-doubly-stochastic-generalises",
        "trained on doubly stochastic chains alone: last cross-entropy on chains with rows from Dir(1, ..., 1) minus "
        "that of the in-context bigram (nats per symbol)",
        "below",
        0.05,
    ),
)

KINDS = {"doubly stochastic": 0.0, "mixture": 1.0}
"""What is trained on -> share of chains with equal rows, in units of `share`."""


def run(config: Config, run_dir: Path) -> Result:
    """Train on both kinds of chains, one model per seed."""
    from experiments.markov_dynamics.in_context_training import evaluation_set, references
    from experiments.sources import InContextChains

    laws = {
        "doubly": InContextChains(config.alphabet, rows="doubly_stochastic"),
        "full": InContextChains(config.alphabet),
    }
    shape = (config.evaluation_rows, config.length + 1)
    sets = [{name: evaluation_set(law, seed, shape) for name, law in laws.items()} for seed in config.seeds]
    known = {name: references([one[name] for one in sets]) for name in laws}
    curves = {kind: _train(config, run_dir, kind, sets) for kind in KINDS}
    columns: dict[str, list] = {"trained_on": [], "seed": [], "learnt": [], "last_doubly": [], "last_full": []}
    learnt = {kind: _learnt(curve, known["doubly"]) for kind, curve in curves.items()}
    for kind, curve in curves.items():
        columns["trained_on"] += [kind] * len(config.seeds)
        columns["seed"] += config.seeds
        columns["learnt"] += learnt[kind].tolist()
        columns["last_doubly"] += curve.metrics["doubly"][:, -1].tolist()
        columns["last_full"] += curve.metrics["full"][:, -1].tolist()
    lines = {f"{name}_{strategy}": values for name in laws for strategy, values in known[name].items()}
    last = curves["doubly stochastic"].metrics["full"][:, -1]
    return Result(
        measured={**measure(config.share, learnt, last - np.array(known["full"]["bigram"]))},
        tables={"models": columns, "references": {"seed": list(config.seeds), **lines}},
        series={kind: {"step": curve.step, **curve.metrics} for kind, curve in curves.items()},
    )


def _train(config: Config, run_dir: Path, kind: str, sets: Sequence[Any]) -> Curves:
    from experiments.markov_dynamics.in_context_training import progress, train_on_chains
    from experiments.sources import InContextChains

    def measured(model: Any, params: Any, chosen: Any) -> dict[str, Any]:
        doubly = progress(model, params, chosen["doubly"])
        full = progress(model, params, chosen["full"])
        return {
            "doubly": doubly["cross_entropy"],
            "full": full["cross_entropy"],
            "previous_token": doubly["previous_token"],
        }

    chains = InContextChains(config.alphabet, rows="doubly_stochastic", equal_share=KINDS[kind] * config.share)
    return train_on_chains(
        config.train,
        chains,
        run_dir / "training" / kind.replace(" ", "-"),
        length=config.length,
        width=config.width,
        seeds=config.seeds,
        label=kind,
        evaluation=sets,
        measure=measured,
    )


def _learnt(curve: Curves, known: dict[str, list[float]]) -> np.ndarray:
    """Step at which each seed's model has learnt the bigram of doubly stochastic chains."""
    from experiments.source_training import escape_steps

    pairs = zip(curve.metrics["doubly"], known["unigram"], known["bigram"], strict=True)
    return np.array([escape_steps(curve.step, loss, unigram, bigram) for loss, unigram, bigram in pairs])


def measure(share: float, learnt: dict[str, np.ndarray], excess: np.ndarray) -> dict[str, list[float]]:
    """The values of the claims.

    Args:
        share: of chains with equal rows in the mixture.
        learnt: kind -> steps (seeds,).
        excess: last cross-entropy on the full prior minus the bigram's, (seeds,).

    Returns:
        claim id -> one value per seed.

    Example:
        >>> learnt = {"doubly stochastic": np.array([100, 100]), "mixture": np.array([200, 100])}
        >>> list(measure(0.25, learnt, np.array([0.01, 0.02])).values())
        [[0.5, -0.25], [0.01, 0.02]]
    """
    alone, counted = np.maximum(learnt["doubly stochastic"], 1), learnt["mixture"] * (1 - share)
    return {
        "markov_dynamics/E2-mixture-delays": ((counted - alone) / alone).tolist(),
        "markov_dynamics/E-doubly-stochastic-generalises": excess.tolist(),
    }


def plot(result: StoredResult) -> Figure:
    """Cross-entropy against doubly stochastic sequences seen, on those chains and on the full prior."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    share, batch = result.config["share"], result.config["train"]["batch_size"]
    titles = {"doubly": "doubly stochastic chains", "full": "rows from Dir(1, ..., 1)"}
    strategies = {"unigram": "#0072B2", "bigram": "#009E73", "truth": "black"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for (kind, weight), colour in zip(KINDS.items(), ("#D55E00", "#CC79A7"), strict=True):
            curve = result.series[kind]
            seen = curve["step"] * batch * (1 - weight * share)
            lines = axis.plot(seen, curve[name].T, color=colour, linewidth=1)
            lines[0].set_label(f"trained on {kind}")
        for strategy, colour in strategies.items():
            level = np.mean(result.tables["references"][f"{name}_{strategy}"])
            axis.axhline(level, color=colour, linestyle="--", linewidth=1, label=strategy)
        axis.set(xlabel="doubly stochastic sequences seen", ylabel="nats per symbol", title=title)
    axes[0].legend(fontsize=7)
    return figure
