"""A tokenizer that memorises its training text looks excellent there and is useless on fresh text.

Row Th2: theorem D.1 of arXiv 2404.08335 on order-1 switching sources with p = q. The dictionary is the two characters
and the whole training text. On the training text that is one token, so improbable that theorem 4.3 would promise almost
the entropy rate if the statistic were that of fresh text. It is not: on fresh text the loss is the entropy of single
characters, for every encoder. With short training texts, which do come again, the loss is computed exactly and compared
with the bound (1 - eps) H(pi), eps = 2 n P(training text).
"""

from __future__ import annotations

import math
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
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Theorem D.1",
    minutes={"smoke": 0.1, "cpu": 0.5},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The sources and the length of the texts."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one training text and two fresh ones each"""
    probabilities: tuple[float, ...] = (0.1, 0.8)
    """p = q of each source"""
    training_symbols: int = 10_000
    """length of the text that is memorised"""
    short_texts: tuple[int, ...] = (10, 20, 40, 80)
    """lengths of memorised texts whose loss is computed exactly"""
    symbols: int = 1_000_000
    """length of the text that unigrams are fitted on, and of the one they are scored on"""
    alpha: float = 0.1
    """pseudo-count of the held-out models"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("the number of probabilities", len(self.probabilities), 1)
        for p in self.probabilities:
            require("each of probabilities", p, 1e-4, below=1)
        require("training_symbols", self.training_symbols, 2)
        require("the number of short_texts", len(self.short_texts), 1)
        require("the smallest of short_texts", min(self.short_texts), 2)
        require("the largest of short_texts", max(self.short_texts), 2, 1000)
        require("symbols", self.symbols, 1)
        require("alpha", self.alpha, 1e-9)


PRESETS = {
    "smoke": Config(seeds=(0, 1), training_symbols=500, short_texts=(10, 20), symbols=5000),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/Th2-memoriser-fails",
        "distance of the unigram loss on fresh text from H(pi), largest over sources and the greedy and the minimal "
        "encoder (held out, nats per symbol)",
        "below",
        0.002,
    ),
    Claim(
        "tokenization/ThmD1-training-statistic",
        "H(Q, P) on the training text of n symbols over n H_inf, minus (1 - n^(-1/4)), smallest over sources",
        "above",
        0.0,
    ),
    Claim(
        "tokenization/ThmD1-lower-bound",
        "unigram loss after a short training text minus (1 - 2 n P(text)) H(pi), where that is positive: smallest over "
        "sources, lengths and seeds (exact, greedy, nats per symbol)",
        "above",
        0.0,
        deterministic=True,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Every source and seed, with one long and several short training texts."""
    from experiments.tokenization.scoring import columns

    pairs = [(p, seed) for seed in config.seeds for p in config.probabilities]
    long = [_long_row(config, p, seed) for p, seed in pairs]
    short = [row for p, seed in pairs for row in _short_rows(config, p, seed)]
    return Result(
        measured={**_measured(config, long, short)}, tables={"long texts": columns(long), "short texts": columns(short)}
    )


def _long_row(config: Config, p: float, seed: int) -> dict[str, Any]:
    """The statistic of the training text, what it would promise, and what fresh text says."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization import GreedyTokenizer, MinimalTokenizer, memorising_dictionary
    from experiments.tokenization.scoring import held_out_scores, sample_texts
    from experiments.tokenization.separations import memoriser_information

    source = SwitchingSource(1, p, p)
    training, fit, fresh = sample_texts(source, seed, (config.training_symbols, config.symbols, config.symbols))
    dictionary = memorising_dictionary([training], alphabet=2)
    information = memoriser_information(source, training)
    greedy, minimal = (
        held_out_scores(kind(dictionary), fit, fresh, config.alpha) for kind in (GreedyTokenizer, MinimalTokenizer)
    )
    return {
        "seed": seed,
        "p": p,
        "entropy_rate": source.entropy_rate(),
        "unigram_entropy": source.unigram_entropy(),
        "training_statistic": information,
        "promised": _promised(source.entropy_rate(), min(p, 1 - p), information),
        "greedy": greedy.unigram,
        "minimal": minimal.unigram,
        "bigram": greedy.bigram,
    }


def _promised(rate: float, delta: float, information: float) -> float | None:
    """Loss that theorem 4.3 would promise from the statistic of the training text, None where it promises nothing."""
    epsilon = math.log(1 / delta) / information
    return rate / (1 - epsilon) if epsilon < 1 else None


def _short_rows(config: Config, p: float, seed: int) -> list[dict[str, Any]]:
    """Exact greedy losses after short training texts, beside the theorem's bound (None where it says nothing)."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization import GreedyTokenizer, memorising_dictionary
    from experiments.tokenization.exact import exact_losses
    from experiments.tokenization.scoring import sample_texts
    from experiments.tokenization.separations import memoriser_bound

    source, rows = SwitchingSource(1, p, p), []
    (text,) = sample_texts(source, seed, (max(config.short_texts),))
    for length in config.short_texts:
        try:
            bound = memoriser_bound(source, text[:length])
        except ValueError:
            bound = None  # the text is so short that eps >= 1
        losses = exact_losses(GreedyTokenizer(memorising_dictionary([text[:length]], alphabet=2)), source)
        rows.append({"seed": seed, "p": p, "length": length, "unigram": losses.unigram, "bound": bound})
    return rows


def _measured(config: Config, long: list[dict[str, Any]], short: list[dict[str, Any]]) -> dict[str, list[float]]:
    least = 1 - config.training_symbols**-0.25
    measured: dict[str, list[float]] = {
        "tokenization/Th2-memoriser-fails": [],
        "tokenization/ThmD1-training-statistic": [],
    }
    for seed in config.seeds:
        own = [row for row in long if row["seed"] == seed]
        measured["tokenization/Th2-memoriser-fails"].append(
            max(abs(row[encoder] - row["unigram_entropy"]) for row in own for encoder in ("greedy", "minimal"))
        )
        measured["tokenization/ThmD1-training-statistic"].append(
            min(row["training_statistic"] / (config.training_symbols * row["entropy_rate"]) - least for row in own)
        )
    margins = [row["unigram"] - row["bound"] for row in short if row["bound"] is not None]
    if margins:
        measured["tokenization/ThmD1-lower-bound"] = [min(margins)]
    return measured


def plot(result: StoredResult) -> Figure:
    """Bars per source: what the training text promises, what fresh text costs; and the short texts with their bound."""
    from matplotlib import pyplot as plt

    long = {name: np.array(column, dtype=float) for name, column in result.tables["long texts"].items()}
    sources = sorted(set(long["p"].tolist()))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    styles = {
        "promised": ("#999999", "promised by the training text"),
        "greedy": ("#D55E00", "token unigram, greedy"),
        "minimal": ("#E69F00", "token unigram, minimal"),
        "bigram": ("#009E73", "token bigram"),
        "unigram_entropy": ("#0072B2", "H(pi)"),
        "entropy_rate": ("black", "entropy rate"),
    }
    for place, (name, (colour, label)) in enumerate(styles.items()):
        heights = [np.nanmean(long[name][long["p"] == p]) for p in sources]
        axes[0].bar(np.arange(len(sources)) + 0.14 * (place - 2.5), heights, 0.13, color=colour, label=label)
    axes[0].set_xticks(range(len(sources)), [f"p = q = {p:g}" for p in sources])
    axes[0].set(ylabel="nats per symbol", title=f"{result.config['training_symbols']} symbols memorised")
    axes[0].set_ylim(0, 1.2)
    axes[0].legend(fontsize=7, loc="upper center", ncols=2)
    short = {name: np.array(column, dtype=float) for name, column in result.tables["short texts"].items()}
    for p, colour in zip(sources, ("#CC79A7", "#56B4E9", "#F0E442"), strict=False):
        own = short["p"] == p
        axes[1].plot(short["length"][own], short["unigram"][own], "o", color=colour, label=f"p = q = {p:g}, exact")
        axes[1].plot(short["length"][own], short["bound"][own], "_", color=colour, markersize=12, label="its bound")
    axes[1].axhline(math.log(2), color="#0072B2", linewidth=1)
    axes[1].set(xlabel="symbols memorised", title="short texts, one point per seed")
    axes[1].legend(fontsize=7)
    return figure
