"""One BPE dictionary under four encoders, and how much the text that it was trained on matters.

Remark A.2 of arXiv 2404.08335: the best unigram over a dictionary depends on the encoder. The dictionary is learned on
the order-2 switching source, p = q = 0.8; the encoders are BPE's merges, the longest prefix, the fewest tokens, and the
likeliest tokens under the unigram that the merges gave on the fitting text. Texts are not cut, and losses are held out.

Ties between minimal encodings go to the longest last token. With ten tokens they are what the claim on the minimal
encoder measures: the merges use as few tokens, and ties to the longest first token would give their loss.

A dictionary of ten tokens learned from 10,000 symbols only is scored beside it.
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

    from experiments.tokenization import BPETokenizer, Tokenizer

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Remark A.2",
    minutes={"smoke": 0.1, "cpu": 0.7},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the dictionaries and the length of the texts."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """training and scoring texts each"""
    order: int = 2
    """order of the switching source"""
    p: float = 0.8
    """probability of 0 -> 1"""
    q: float = 0.8
    """probability of 1 -> 0"""
    sizes: tuple[int, ...] = (4, 10, 20, 100, 1000)
    """dictionary sizes d, rising"""
    tokenizer_symbols: int = 200_000
    """length of the training text"""
    short_symbols: int = 10_000
    """length of the short training text"""
    symbols: int = 500_000
    """length of the text that n-grams are fitted on, and of the one they are scored on"""
    alpha: float = 0.1
    """pseudo-count of the held-out models"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("order", self.order, 1)
        require("p", self.p, 1e-4, below=1)
        require("q", self.q, 1e-4, below=1)
        require("the number of sizes", len(self.sizes), 1)
        require("the smallest of sizes", min(self.sizes), 2)
        for name in ("tokenizer_symbols", "short_symbols", "symbols"):
            require(name, getattr(self, name), 1)
        require("alpha", self.alpha, 1e-9)


PRESETS = {
    "smoke": Config(seeds=(0, 1), sizes=(4, 10), tokenizer_symbols=10_000, short_symbols=2000, symbols=10_000),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/RemA2-encoder-dependence",
        "1000 BPE tokens: unigram loss of the greedy encoder minus that of the merges (held out, nats per symbol)",
        "above",
        0.01,
    ),
    Claim(
        "tokenization/RemA2-minimal-encoder",
        "10 BPE tokens: unigram loss of the minimal encoder minus that of the merges (held out, nats per symbol)",
        "above",
        0.01,
        kind="ours",
    ),
    Claim(
        "tokenization/RemA2-greedy-is-merges",
        "10 BPE tokens: unigram loss of the greedy encoder minus that of the merges (held out, nats per symbol)",
        "within",
        0.0,
        0.003,
        kind="ours",
    ),
    Claim(
        "tokenization/ours-bpe-training-variance",
        "10 BPE tokens: unigram loss of the dictionary from 10,000 symbols minus that from 200,000 "
        "(held out, nats per symbol)",
        "above",
        0.0,
        kind="ours",
    ),
)

SHORT = "merges, short training text"


def run(config: Config, run_dir: Path) -> Result:
    """All dictionaries and encoders for every seed."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization.scoring import columns

    source = SwitchingSource(config.order, config.p, config.q)
    rows = [row for seed in config.seeds for row in _rows(config, seed)]
    references = {"entropy_rate": [source.entropy_rate()], "unigram_entropy": [source.unigram_entropy()]}
    return Result(measured={**_measured(config, rows)}, tables={"losses": columns(rows), "references": references})


def _rows(config: Config, seed: int) -> list[dict[str, Any]]:
    from experiments.sources import SwitchingSource
    from experiments.tokenization import BPETokenizer
    from experiments.tokenization.scoring import held_out_scores, sample_texts

    source = SwitchingSource(config.order, config.p, config.q)
    lengths = (config.tokenizer_symbols, config.short_symbols, config.symbols, config.symbols)
    training, short, fit, fresh = sample_texts(source, seed, lengths)
    rows = []
    for size in config.sizes:
        encoders = _encoders(BPETokenizer.train_whole([training], size, alphabet=2), fit, config.alpha)
        if size == TEN:
            encoders[SHORT] = BPETokenizer.train_whole([short], size, alphabet=2)
        for name, tokenizer in encoders.items():
            scores = held_out_scores(tokenizer, fit, fresh, config.alpha)
            rows.append({"seed": seed, "size": size, "encoder": name, **vars(scores)})
    return rows


TEN, THOUSAND = 10, 1000


def _encoders(bpe: BPETokenizer, fit: np.ndarray, alpha: float) -> dict[str, Tokenizer]:
    """The same dictionary four times."""
    from experiments.tokenization import GreedyTokenizer, MinimalTokenizer, ViterbiTokenizer

    counts = np.bincount(bpe.encode(fit), minlength=len(bpe)) + alpha
    return {
        "merges": bpe,
        "greedy": GreedyTokenizer(bpe.vocabulary),
        "minimal": MinimalTokenizer(bpe.vocabulary),
        "likeliest": ViterbiTokenizer(bpe.vocabulary, np.log(counts / counts.sum())),
    }


def _measured(config: Config, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    compared = {
        "tokenization/RemA2-encoder-dependence": (THOUSAND, "greedy", "merges"),
        "tokenization/RemA2-minimal-encoder": (TEN, "minimal", "merges"),
        "tokenization/RemA2-greedy-is-merges": (TEN, "greedy", "merges"),
        "tokenization/ours-bpe-training-variance": (TEN, SHORT, "merges"),
    }
    losses = {(row["seed"], row["size"], row["encoder"]): row["unigram"] for row in rows}
    return {
        claim: [losses[seed, size, one] - losses[seed, size, other] for seed in config.seeds]
        for claim, (size, one, other) in compared.items()
        if size in config.sizes
    }


def plot(result: StoredResult) -> Figure:
    """Token unigram (full) and bigram (dashed) against dictionary size, one colour per encoder, with both entropies."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["losses"].items()}
    references, sizes = result.tables["references"], np.array(result.config["sizes"])
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    colours = {"merges": "#D55E00", "greedy": "#009E73", "minimal": "#CC79A7", "likeliest": "#E69F00"}
    for name, colour in colours.items():
        for model, style in {"unigram": "o-", "bigram": "--"}.items():
            here = table["encoder"] == name
            means = [table[model][here & (table["size"] == size)].mean() for size in sizes]
            axis.semilogx(sizes, means, style, color=colour, markersize=4, label=f"{name}, token {model}")
    axis.axhline(references["unigram_entropy"][0], color="#0072B2", linewidth=1, label="H(pi)")
    axis.axhline(references["entropy_rate"][0], color="black", linewidth=1, label="entropy rate")
    axis.set(xlabel="BPE tokens", ylabel="nats per symbol", title="one dictionary, four encoders")
    axis.legend(fontsize=7)
    return figure
