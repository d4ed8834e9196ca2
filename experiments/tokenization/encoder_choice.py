"""One dictionary, two encoders: as few tokens as possible is nearly optimal, the greedy encoding is not.

Row Th3: theorem E.2 of arXiv 2404.08335 on the three-state source that leaves its state with probability delta. The
dictionary has 1 followed by a run of 0, 1 or 2, up to length 1 + 2 log(1/delta) / delta. Losses of the greedy encoder
are exact, without a sample; those of the minimal encoder are held out, and the smaller delta the rarer its tokens: the
bigram over them is fitted on too few counts at small delta to be a bound on anything, and only stands in the table.
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
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Theorem E.2",
    minutes={"smoke": 0.1, "cpu": 0.2},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The sources and the length of the texts."""

    deltas: tuple[float, ...] = (0.3, 0.1, 0.05, 0.02)
    """probability of leaving a state, of each source"""
    symbols: int = 1_000_000
    """length of the text that unigrams are fitted on, and of the one they are scored on"""
    alpha: float = 0.1
    """pseudo-count of the held-out models"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("the number of deltas", len(self.deltas), 1)
        for delta in self.deltas:
            require("each of deltas", delta, 1e-4, below=0.5)
        require("symbols", self.symbols, 1)
        require("alpha", self.alpha, 1e-9)


PRESETS = {"smoke": Config(seeds=(0, 1), deltas=(0.3, 0.1), symbols=20_000), "cpu": Config()}

CLAIMS = (
    Claim(
        "tokenization/Th3-minimal-encoder",
        "minimal encoder: unigram loss over the entropy rate, largest over delta (held out)",
        "below",
        1.273,
    ),
    Claim(
        "tokenization/Th3-greedy-encoder",
        "greedy encoder: unigram loss minus the theorem's lower bound, smallest over delta (exact, nats per symbol)",
        "above",
        0.0,
        deterministic=True,
    ),
    Claim(
        "tokenization/Th3-encoder-ratio",
        "greedy unigram loss over minimal unigram loss at delta = 0.02",
        "above",
        3.0,
        kind="ours",
    ),
    Claim(
        "tokenization/Th3-constant",
        "largest value over delta of the ratio that bounds the minimal encoder's loss (exact)",
        "within",
        1.273,
        0.001,
        deterministic=True,
    ),
)

SMALL = 0.02


def run(config: Config, run_dir: Path) -> Result:
    """Both encoders on every source and for every seed."""
    from experiments.tokenization.scoring import columns

    exact = [_exact_row(delta) for delta in config.deltas]
    rows = [_sampled_row(config, delta, seed) for seed in config.seeds for delta in config.deltas]
    deltas, ratios = _ratios()
    tables = {"greedy": columns(exact), "minimal": columns(rows), "constant": {"delta": [deltas], "largest": [ratios]}}
    return Result(measured={**_measured(config, exact, rows, ratios)}, tables=tables)


def _exact_row(delta: float) -> dict[str, Any]:
    """The greedy encoder on one source: exact losses, and the theorem's bounds."""
    from experiments.sources import ThreeStateSource
    from experiments.tokenization import GreedyTokenizer, longest_run, run_dictionary
    from experiments.tokenization.exact import exact_losses
    from experiments.tokenization.separations import theorem_e_2_lower_bound, theorem_e_2_upper_bound

    source = ThreeStateSource(delta)
    losses = exact_losses(GreedyTokenizer(run_dictionary(longest_run(delta))), source)
    return {
        "delta": delta,
        "entropy_rate": source.entropy_rate(),
        "unigram_entropy": source.unigram_entropy(),
        "size": len(losses.frequencies),
        "unigram": losses.unigram,
        "bigram": losses.bigram,
        "symbols_per_token": losses.symbols_per_token,
        "lower_bound": theorem_e_2_lower_bound(source),
        "minimal_upper_bound": theorem_e_2_upper_bound(source),
    }


def _sampled_row(config: Config, delta: float, seed: int) -> dict[str, Any]:
    """The minimal encoder on fresh text of one source, and the greedy one on the same text as a check."""
    from experiments.sources import ThreeStateSource
    from experiments.tokenization import GreedyTokenizer, MinimalTokenizer, longest_run, run_dictionary
    from experiments.tokenization.scoring import held_out_scores, sample_texts

    dictionary = run_dictionary(longest_run(delta))
    fit, fresh = sample_texts(ThreeStateSource(delta), seed, [config.symbols] * 2)
    minimal = held_out_scores(MinimalTokenizer(dictionary), fit, fresh, config.alpha)
    greedy = held_out_scores(GreedyTokenizer(dictionary), fit, fresh, config.alpha)
    return {
        "seed": seed,
        "delta": delta,
        "unigram": minimal.unigram,
        "bigram": minimal.bigram,
        "symbols_per_token": minimal.symbols_per_token,
        "greedy_unigram": greedy.unigram,
    }


def _ratios() -> tuple[float, float]:
    """Where `minimal_encoder_ratio` is largest, and how large."""
    from experiments.tokenization.separations import minimal_encoder_ratio

    grid = np.geomspace(1e-4, 0.499, 20_001)
    values = [minimal_encoder_ratio(delta) for delta in grid.tolist()]
    best = int(np.argmax(values))
    return float(grid[best]), float(values[best])


def _measured(
    config: Config, exact: list[dict[str, Any]], rows: list[dict[str, Any]], constant: float
) -> dict[str, list[float]]:
    greedy = {row["delta"]: row for row in exact}
    measured: dict[str, list[float]] = {
        "tokenization/Th3-minimal-encoder": [],
        "tokenization/Th3-greedy-encoder": [min(row["unigram"] - row["lower_bound"] for row in exact)],
        "tokenization/Th3-constant": [constant],
    }
    for seed in config.seeds:
        own = [row for row in rows if row["seed"] == seed]
        measured["tokenization/Th3-minimal-encoder"].append(
            max(row["unigram"] / greedy[row["delta"]]["entropy_rate"] for row in own)
        )
        for row in own:
            if row["delta"] == SMALL:
                ratio = greedy[SMALL]["unigram"] / row["unigram"]
                measured.setdefault("tokenization/Th3-encoder-ratio", []).append(ratio)
    return measured


def plot(result: StoredResult) -> Figure:
    """Losses over the entropy rate against delta: both encoders, the theorem's bounds, characters, token bigrams."""
    from matplotlib import pyplot as plt

    greedy = {name: np.array(column) for name, column in result.tables["greedy"].items()}
    sampled = {name: np.array(column) for name, column in result.tables["minimal"].items()}
    delta, rate = greedy["delta"], greedy["entropy_rate"]
    minimal = np.array([sampled["unigram"][sampled["delta"] == one].mean() for one in delta])
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.loglog(delta, greedy["unigram_entropy"] / rate, color="#0072B2", label="unigram over characters, H(pi)")
    axis.loglog(delta, greedy["unigram"] / rate, "o-", color="#D55E00", label="greedy encoder, unigram")
    axis.loglog(delta, greedy["lower_bound"] / rate, ":", color="#D55E00", label="its lower bound")
    axis.loglog(delta, greedy["bigram"] / rate, "--", color="#D55E00", label="greedy encoder, bigram")
    axis.loglog(delta, minimal / rate, "o-", color="#009E73", label="minimal encoder, unigram")
    axis.axhline(1.273, color="#009E73", linestyle=":", label="its upper bound, 1.273")
    axis.axhline(1, color="black", linewidth=1, label="entropy rate")
    axis.set(xlabel="delta", ylabel="loss over the entropy rate", title="the dictionary of theorem E.2")
    axis.legend(fontsize=8)
    return figure
