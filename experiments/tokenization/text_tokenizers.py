"""Four tokenizers on real text: how good is a unigram over their tokens, against character k-grams?

Row F7 of arXiv 2404.08335, with WordPiece and Unigram beside LZW and BPE, on the documentation of Python's standard
library. Tokenizers and models see four fifths of the documents and are scored on the last fifth, another one for each
seed; the loss on the fitted text itself, which the published figure shows, stands beside it. WordPiece takes a blank as
the beginning of a word; the others know no words. All are lossless.

The published setting (WikiText-103 and GLUE) is that of `dictionary_size`, for LZW and BPE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.tokenization import Tokenizer

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figure 7, all tokenizers",
    minutes={"smoke": 0.2, "cpu": 4},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The text and the dictionary sizes."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """the position of a seed decides which part of the documents is scored"""
    characters: int = 1_000_000
    """most characters of the documentation"""
    sizes: tuple[int, ...] = (300, 500, 1000, 2000, 4000)
    """dictionary sizes d, rising; WordPiece has each character twice, so d is 206 at least"""
    orders: int = 4
    """character k-grams with k up to this"""
    folds: int = 5
    """disjoint parts of the documents; with more seeds, as many as seeds"""
    alpha: float = 0.1
    """pseudo-count of every n-gram model in a held-out loss"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("characters", self.characters, 1)
        require("the number of sizes", len(self.sizes), 1)
        require("the smallest of sizes", min(self.sizes), 2)
        if sorted(set(self.sizes)) != list(self.sizes):
            raise ValueError(f"sizes: got {self.sizes}, expected rising values")
        require("orders", self.orders, 2)
        require("folds", self.folds, 2)
        require("alpha", self.alpha, 1e-9)


PRESETS = {
    "smoke": Config(seeds=(0, 1), characters=40_000, sizes=(300, 400), orders=2, folds=2),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/Fig7-wordpiece-unigram-tokenizers",
        "unigram over 500 WordPiece or Unigram tokens, the larger loss, minus character bigram "
        "(held out, nats per character)",
        "below",
        0.0,
    ),
    Claim(
        "tokenization/F7-all-tokenizers-improve",
        "largest change of the WordPiece or Unigram tokens' loss to the next size (in-sample, nats per character)",
        "below",
        0.0,
    ),
    Claim(
        "tokenization/F7-unigram-tokenizer-best",
        "unigram over 1000 Unigram tokens minus the best of LZW, BPE and WordPiece (held out, nats per character)",
        "below",
        0.0,
        kind="ours",
    ),
)

TOKENIZERS = ("LZW", "BPE", "WordPiece", "Unigram")


def run(config: Config, run_dir: Path) -> Result:
    """All tokenizers, sizes and k-grams on each part of the documents."""
    from experiments.runs import record_data
    from experiments.sources import documentation
    from experiments.tokenization.scoring import columns

    corpus = documentation().head(config.characters)
    data = {f"text: {corpus.name}": corpus.sha256}
    record_data(run_dir, data)
    folds = max(config.folds, len(config.seeds))
    rows = []
    for fold, seed in enumerate(config.seeds):
        fit, test = (part.characters(corpus.alphabet) for part in corpus.split(fold, folds))
        rows += [{"seed": seed, **row} for row in loss_rows(config, fit, test, corpus.alphabet)]
    return Result(measured={**measure(config, rows)}, tables={"losses": columns(rows)}, data=data)


def loss_rows(config: Config, fit: list[np.ndarray], test: list[np.ndarray], alphabet: str) -> list[dict[str, Any]]:
    """One row per character k-gram, and one per tokenizer and size.

    Args:
        config: sizes, orders and pseudo-count.
        fit: documents that tokenizers and models see, as positions in the alphabet.
        test: documents that are scored.
        alphabet: the characters, a blank among them.

    Returns:
        Rows of the table `losses`, without the seed.
    """
    from experiments.tokenization import CharacterTokenizer

    characters = CharacterTokenizer.train([], alphabet=len(alphabet))
    rows = [
        {"tokenizer": f"characters, {k}-gram", "size": len(alphabet), **_losses(characters, fit, test, k, config.alpha)}
        for k in range(1, config.orders + 1)
    ]
    for size in config.sizes:
        for name, train in _trainers(fit, alphabet).items():
            tokenizer = train(size)
            rows.append({"tokenizer": name, "size": size, **_losses(tokenizer, fit, test, 1, config.alpha)})
    return rows


def _trainers(fit: list[np.ndarray], alphabet: str) -> dict[str, Callable[[int], Tokenizer]]:
    from experiments.tokenization import BPETokenizer, LZWTokenizer, UnigramTokenizer, WordPieceTokenizer

    count, blank = len(alphabet), alphabet.index(" ")
    return {
        "LZW": lambda size: LZWTokenizer.train(fit, size, alphabet=count),
        "BPE": lambda size: BPETokenizer.train(fit, size, alphabet=count),
        "WordPiece": lambda size: WordPieceTokenizer.train(fit, size, alphabet=count, separator=blank),
        "Unigram": lambda size: UnigramTokenizer.train(fit, size, alphabet=count),
    }


def _losses(
    tokenizer: Tokenizer, fit: list[np.ndarray], test: list[np.ndarray], order: int, alpha: float
) -> dict[str, Any]:
    """Losses of the k-gram over the tokens, and of the next longer one, which is the token bigram for k = 1."""
    from experiments.tokenization.losses import held_out_loss, plug_in_loss

    fit_ids, test_ids = tokenizer.encode_batch(fit), tokenizer.encode_batch(test)
    fit_symbols, symbols, size = sum(map(len, fit)), sum(map(len, test)), len(tokenizer)
    held_out, longer = (
        held_out_loss(fit_ids, test_ids, size=size, order=k, alpha=alpha, symbols=symbols) for k in (order, order + 1)
    )
    return {
        "vocabulary": size,
        "held_out": held_out,
        "held_out_one_longer": longer,
        "in_sample": plug_in_loss(fit_ids, size=size, order=order, symbols=fit_symbols),
        "symbols_per_token": symbols / sum(map(len, test_ids)),
    }


def measure(config: Config, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of the claims, as far as their sizes were run.

    Args:
        config: seeds and sizes.
        rows: of the table `losses`.

    Returns:
        claim id -> one value per seed.
    """
    at = {(row["seed"], row["tokenizer"], row["size"]): row for row in rows}
    bigram = {row["seed"]: row["held_out"] for row in rows if row["tokenizer"] == "characters, 2-gram"}
    two, measured = ("WordPiece", "Unigram"), {}
    if 500 in config.sizes:
        measured["tokenization/Fig7-wordpiece-unigram-tokenizers"] = [
            max(at[seed, name, 500]["held_out"] for name in two) - bigram[seed] for seed in config.seeds
        ]
    if 1000 in config.sizes:
        measured["tokenization/F7-unigram-tokenizer-best"] = [
            at[seed, "Unigram", 1000]["held_out"] - min(at[seed, name, 1000]["held_out"] for name in TOKENIZERS[:3])
            for seed in config.seeds
        ]
    if len(config.sizes) > 1:
        measured["tokenization/F7-all-tokenizers-improve"] = [
            max(float(np.diff([at[seed, name, size]["in_sample"] for size in config.sizes]).max()) for name in two)
            for seed in config.seeds
        ]
    return measured


def plot(result: StoredResult) -> Figure:
    """Held-out loss against dictionary size: unigrams and bigrams over tokens, with the character k-grams as lines."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["losses"].items()}
    sizes = np.array(result.config["sizes"])
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for name, colour in zip(TOKENIZERS, ("#009E73", "#D55E00", "#CC79A7", "#E69F00"), strict=True):
        for column, style in {"held_out": "o-", "held_out_one_longer": "--"}.items():
            here = table["tokenizer"] == name
            means = [table[column][here & (table["size"] == size)].mean() for size in sizes]
            label = f"{name}, token {'unigram' if style == 'o-' else 'bigram'}"
            axis.semilogx(sizes, means, style, color=colour, markersize=4, label=label)
    for k in range(1, result.config["orders"] + 1):
        level = table["held_out"][table["tokenizer"] == f"characters, {k}-gram"].mean()
        axis.axhline(level, color="#0072B2", linewidth=0.8)
        axis.annotate(f"characters, {k}-gram", (1.01, level), xycoords=("axes fraction", "data"), fontsize=7)
    axis.set(xlabel="dictionary size", ylabel="nats per character, held out")
    axis.legend(fontsize=7)
    return figure
