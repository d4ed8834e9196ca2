"""Counting the context is the best one can do: smoothed conditional k-grams against other counts.

Every sequence is a chain of its own, of order k, with rows from Dir(1, ..., 1). The conditional k-gram with pseudo-
count 1 is the optimal prediction then (arXiv 2407.17686, section 2; for k = 1 the in-context bigram of arXiv
2402.11004), but for what the first symbols, drawn from the stationary law, tell about the rows. It is compared with
other pseudo-counts, with shorter and with longer contexts. No model is trained. All losses are cross-entropies
against the chains' own transition probabilities, on the same sequences, so that differences have little chance in
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Transformers on Markov data: constant depth suffices (arXiv 2407.17686)",
    source="Section 2, Bayes-optimal estimator",
    minutes={"smoke": 0.2, "cpu": 0.2},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The chains and the predictors."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one set of chains each"""
    chains: tuple[tuple[int, int], ...] = ((2, 1), (3, 1), (2, 2), (2, 3))
    """(symbols K, order k) of each law"""
    length: int = 100
    """symbols that are predicted, after a first one"""
    sequences: int = 512
    """of each law"""
    pseudo_counts: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """of the other predictors of the same order"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("the number of chains", len(self.chains), 1)
        for alphabet, order in self.chains:
            require("each alphabet of chains", alphabet, 2)
            require("each order of chains", order, 1, 6)
        require("length", self.length, 2)
        require("sequences", self.sequences, 1)
        require("the number of pseudo_counts", len(self.pseudo_counts), 1)
        for count in self.pseudo_counts:
            require("each of pseudo_counts", count, 1e-3)
        if 1.0 in self.pseudo_counts:
            raise ValueError("pseudo_counts: got 1 among them, expected others, since 1 is what they are compared with")


PRESETS = {
    "smoke": Config(seeds=(0, 1), chains=((2, 1),), length=20, sequences=64, pseudo_counts=(0.5, 4.0)),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "markov_dynamics/E-bayes-bigram",
        "order 1: least cross-entropy of another predictor minus that of the bigram, smallest over alphabets "
        "(nats per symbol)",
        "above",
        0.0,
    ),
    Claim(
        "markov_dynamics/C-bayes-optimal",
        "order 2 or more: least cross-entropy of another predictor minus that of the k-gram, smallest over orders "
        "(nats per symbol)",
        "above",
        0.0,
    ),
    Claim(
        "markov_dynamics/E-bigram-baseline",
        "two symbols, order 1, 100 predictions: cross-entropy of the in-context bigram (nats per symbol)",
        "within",
        0.5057,
        0.01,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Score all predictors on all chains."""
    rows = [row for seed in config.seeds for chain in config.chains for row in _rows(config, *chain, seed)]
    return Result(
        measured={**measure(config, rows)}, tables={"losses": {name: [row[name] for row in rows] for name in rows[0]}}
    )


def _rows(config: Config, alphabet: int, order: int, seed: int) -> list[dict[str, Any]]:
    """One row per predictor; the chain itself is the row with no pseudo-count."""
    import jax

    from experiments.sources import InContextChains
    from experiments.sources.predictors import kgram_predictions, oracle_predictions

    chains = InContextChains(alphabet, order)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), alphabet), order)
    kernels, symbols = chains.sample(key, (config.sequences, config.length + 1))
    truth = np.asarray(oracle_predictions(kernels, symbols), np.float64)[:, 1:]
    candidates = [(order, 1.0), *((order, count) for count in config.pseudo_counts)]
    candidates += [(other, 1.0) for other in range(order + 2) if other != order]
    rows = [{"context": order, "pseudo_count": None, "loss": cross_entropy(truth, truth)}]
    for context, count in candidates:
        laws = np.asarray(kgram_predictions(symbols, alphabet, context, count), np.float64)[:, 1:]
        rows.append({"context": context, "pseudo_count": count, "loss": cross_entropy(laws, truth)})
    return [{"seed": seed, "alphabet": alphabet, "order": order, **row} for row in rows]


def cross_entropy(laws: np.ndarray, truth: np.ndarray) -> float:
    """Mean over sequences and positions of - sum_x P(x) log Q(x), with 0 log 0 = 0.

    Args:
        laws: Q, (B, L, K), positive where P is.
        truth: P, (B, L, K).

    Returns:
        Nats per symbol.

    Example:
        >>> round(cross_entropy(np.full((1, 1, 2), 0.5), np.array([[[1.0, 0.0]]])), 6)
        0.693147
    """
    return -float(np.where(truth > 0, truth * np.log(np.where(truth > 0, laws, 1.0)), 0.0).sum(axis=-1).mean())


def measure(config: Config, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of the claims, as far as their chains were drawn.

    Args:
        config: seeds and chains.
        rows: of the table `losses`.

    Returns:
        claim id -> one value per seed.
    """
    margins = {
        (seed, *chain): _margin([row for row in rows if (row["seed"], row["alphabet"], row["order"]) == (seed, *chain)])
        for seed in config.seeds
        for chain in config.chains
    }
    measured = {}
    kinds = {
        "E-bayes-bigram": [chain for chain in config.chains if chain[1] == 1],
        "C-bayes-optimal": [chain for chain in config.chains if chain[1] > 1],
    }
    for name, chains in kinds.items():
        if chains:
            values = [min(margins[seed, *chain] for chain in chains) for seed in config.seeds]
            measured[f"markov_dynamics/{name}"] = values
    if (2, 1) in config.chains and config.length == 100:
        measured["markov_dynamics/E-bigram-baseline"] = [
            row["loss"]
            for row in rows
            if (row["alphabet"], row["order"], row["context"], row["pseudo_count"]) == (2, 1, 1, 1.0)
        ]
    return measured


def _margin(rows: list[dict[str, Any]]) -> float:
    """Least loss of the other predictors minus that of the k-gram with pseudo-count 1."""
    best = [row["loss"] for row in rows if (row["context"], row["pseudo_count"]) == (row["order"], 1.0)]
    others = [
        row["loss"]
        for row in rows
        if row["pseudo_count"] is not None and (row["context"], row["pseudo_count"]) != (row["order"], 1.0)
    ]
    return min(others) - best[0]


def plot(result: StoredResult) -> Figure:
    """One panel per law of chains: loss of each predictor above the chains' own, mean over seeds."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["losses"].items()}
    chains = [tuple(chain) for chain in result.config["chains"]]
    figure, axes = plt.subplots(1, len(chains), figsize=(3.2 * len(chains), 3.4), layout="constrained", squeeze=False)
    for axis, (alphabet, order) in zip(axes[0], chains, strict=True):
        here = (table["alphabet"] == alphabet) & (table["order"] == order)
        names = [(context, count) for context, count in zip(table["context"], table["pseudo_count"], strict=True)]
        shown = list(dict.fromkeys(name for name, own in zip(names, here, strict=True) if own))
        own = [here & np.array([name == one for name in names]) for one in shown]
        excess = [table["loss"][mask].mean() - table["loss"][own[0]].mean() for mask in own[1:]]
        colours = ["#009E73" if one == (order, 1.0) else "#999999" for one in shown[1:]]
        axis.bar(range(len(excess)), excess, color=colours)
        axis.set_xticks(range(len(excess)), [f"{context}, {count:g}" for context, count in shown[1:]], rotation=60)
        axis.set(xlabel="context, pseudo-count", title=f"{alphabet} symbols, order {order}")
    axes[0][0].set_ylabel("nats per symbol above the chains' own")
    return figure
