"""With a finite text to fit the unigram on there is a best dictionary size, and it grows with the text.

Row Th4: appendix C of arXiv 2404.08335. LZW dictionaries are learned on a text of their own; a Laplace unigram is
fitted on the first n symbols of another one. Its loss on a text without end is known exactly: the loss of the best
unigram plus KL(best || fitted) per token. Small dictionaries lose by what their tokens cannot say, large ones by what
the fitted unigram does not know yet. Below about 10^4 symbols the fitted unigram is almost uniform, and the loss keeps
falling with the size; so the shortest text has that many.

Theorem C.1 bounds the excess of a text whose length carries a constant that the paper does not give. It is taken as 1,
and the text is cut to n' tokens as algorithm 2 says. The event that the theorem assumes fails at these sizes
(column `assumed_event`); what is tested is the conclusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
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
    source="Appendix C, theorem C.1",
    minutes={"smoke": 0.1, "cpu": 0.5},
)


@dataclass(frozen=True)
class Config(results.Config):
    """Dictionary sizes and lengths of text."""

    p: float = 0.1
    """probability of 0 -> 1 of the order-1 switching source"""
    q: float = 0.1
    """probability of 1 -> 0"""
    sizes: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    """dictionary sizes d, rising"""
    lengths: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """symbols n that the unigram is fitted on, rising"""
    tokenizer_symbols: int = 2_000_000
    """length of the text that the dictionaries are learned on"""
    theorem_p: float = 0.8
    """p = q of the source on which theorem C.1 is tried: its hypothesis wants small d to have a large delta"""
    theorem_sizes: tuple[int, ...] = (32, 64, 128)
    """dictionary sizes there"""
    theta: float = 0.01
    """of theorem C.1"""
    excess: float = 0.5
    """xi of theorem C.1"""
    failure: float = 0.1
    """eta of theorem C.1"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("p", "q", "theorem_p"):
            require(name, getattr(self, name), 1e-4, below=1)
        for name in ("sizes", "lengths", "theorem_sizes"):
            values = getattr(self, name)
            require(f"the number of {name}", len(values), 1)
            require(f"the smallest of {name}", min(values), 2)
            if sorted(set(values)) != list(values):
                raise ValueError(f"{name}: got {values}, expected rising values")
        require("tokenizer_symbols", self.tokenizer_symbols, 2)
        for name in ("theta", "excess", "failure"):
            require(name, getattr(self, name), 1e-6, below=1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        sizes=(16, 64, 256),
        lengths=(1000, 10_000),
        tokenizer_symbols=10_000,
        theorem_sizes=(32,),
        excess=0.99,
    ),
    "cpu": Config(seeds=(0, 1, 2, 3, 4)),
}

CLAIMS = (
    Claim(
        "tokenization/Th4-optimal-dictionary-size",
        "least growth of the base-2 logarithm of the best dictionary size from one text to the next longer one",
        "above",
        0.0,
    ),
    Claim(
        "tokenization/ThmC1-finite-sample",
        "excess of the Laplace unigram over the best one, as a share of it, minus xi: largest over sizes and seeds",
        "below",
        0.0,
        deterministic=True,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Losses of all sizes and lengths, and theorem C.1, for every seed."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization.scoring import columns

    rows = [row for seed in config.seeds for row in _curve_rows(config, seed)]
    theorem = [row for seed in config.seeds for row in _theorem_rows(config, seed)]
    source = SwitchingSource(1, config.p, config.q)
    references = {"entropy_rate": [source.entropy_rate()], "unigram_entropy": [source.unigram_entropy()]}
    return Result(
        measured={
            "tokenization/Th4-optimal-dictionary-size": [_least_growth(config, rows, seed) for seed in config.seeds],
            "tokenization/ThmC1-finite-sample": [max(row["excess_share"] - config.excess for row in theorem)],
        },
        tables={"losses": columns(rows), "theorem": columns(theorem), "references": references},
    )


def _curve_rows(config: Config, seed: int) -> list[dict[str, Any]]:
    """One row per size and length: what the fitted, the best unigram and the best bigram lose."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization import LZWTokenizer
    from experiments.tokenization.exact import exact_losses
    from experiments.tokenization.finite_sample import excess_loss, laplace_unigram
    from experiments.tokenization.scoring import sample_texts

    source, rows = SwitchingSource(1, config.p, config.q), []
    training, fit = sample_texts(source, seed, (config.tokenizer_symbols, max(config.lengths)))
    for size in config.sizes:
        tokenizer = LZWTokenizer.train([training], size, alphabet=2)
        best = exact_losses(tokenizer, source)
        for length in config.lengths:
            fitted = laplace_unigram(tokenizer.encode(fit[:length]), len(tokenizer))
            excess = excess_loss(best.frequencies, fitted, best.symbols_per_token)
            rows.append(
                {
                    "seed": seed,
                    "size": size,
                    "length": length,
                    "vocabulary": len(tokenizer),
                    "fitted": best.unigram + excess,
                    "best_unigram": best.unigram,
                    "best_bigram": best.bigram,
                }
            )
    return rows


def _theorem_rows(config: Config, seed: int) -> list[dict[str, Any]]:
    """Algorithm 2 on texts as long as theorem C.1 asks for with its constant taken as 1."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization import LZWTokenizer
    from experiments.tokenization.exact import exact_losses
    from experiments.tokenization.finite_sample import (
        concentrates,
        excess_loss,
        laplace_unigram,
        theorem_c_1_symbols,
        tokens_of_text,
    )
    from experiments.tokenization.scoring import sample_texts

    source, rows = SwitchingSource(1, config.theorem_p, config.theorem_p), []
    numbers = {"theta": config.theta, "excess": config.excess, "failure": config.failure, "constant": 1.0}
    for size in config.theorem_sizes:
        length = math.ceil(theorem_c_1_symbols(source, size, **numbers))
        training, fit = sample_texts(source, seed, (size, length))
        tokenizer = LZWTokenizer.train_on_prefix(training, size, alphabet=2)
        best = exact_losses(tokenizer, source)
        tokens = tokens_of_text(source, size, length)
        fitted = laplace_unigram(tokenizer.encode(fit), len(tokenizer), tokens)
        excess = excess_loss(best.frequencies, fitted, best.symbols_per_token)
        rows.append(
            {
                "seed": seed,
                "size": size,
                "length": length,
                "tokens": tokens,
                "assumed_event": concentrates(tokenizer.vocabulary, source, size, config.theta),
                "best_unigram": best.unigram,
                "excess_share": excess / best.unigram,
            }
        )
    return rows


def best_sizes(rows: list[dict[str, Any]], lengths: tuple[int, ...]) -> list[int]:
    """The size with the least loss of the fitted unigram, for each length.

    Args:
        rows: with `size`, `length` and `fitted`.
        lengths: in this order.

    Returns:
        One size per length, the smallest one of equals.

    Example:
        >>> rows = [{"size": d, "length": n, "fitted": d / n + 1 / d} for d in (1, 2, 4) for n in (4, 20)]
        >>> best_sizes(rows, (4, 20))
        [2, 4]
    """
    best = []
    for length in lengths:
        own = [row for row in rows if row["length"] == length]
        best.append(min(own, key=lambda row: (row["fitted"], row["size"]))["size"])
    return best


def _least_growth(config: Config, rows: list[dict[str, Any]], seed: int) -> float:
    """NaN with a single length: nothing to compare."""
    sizes = best_sizes([row for row in rows if row["seed"] == seed], config.lengths)
    return min((math.log2(after / before) for before, after in pairwise(sizes)), default=math.nan)


def plot(result: StoredResult) -> Figure:
    """Loss against dictionary size, one curve per length of text, with the best unigram, the best bigram and H_inf."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["losses"].items()}
    references, sizes = result.tables["references"], np.array(result.config["sizes"])
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")

    def mean(name: str, length: int) -> np.ndarray:
        return np.array([table[name][(table["size"] == d) & (table["length"] == length)].mean() for d in sizes])

    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(result.config["lengths"])))
    for length, colour in zip(result.config["lengths"], colours, strict=True):
        loss = mean("fitted", length)
        axis.semilogx(sizes, loss, "o-", color=colour, markersize=3, label=f"fitted on {length:,} symbols")
        axis.plot(sizes[np.argmin(loss)], loss.min(), "*", color=colour, markersize=12)
    first = result.config["lengths"][0]
    axis.semilogx(sizes, mean("best_unigram", first), color="#D55E00", label="best token unigram")
    axis.semilogx(sizes, mean("best_bigram", first), color="#009E73", label="best token bigram")
    axis.axhline(references["unigram_entropy"][0], color="#0072B2", linestyle="--", label="H(pi)")
    axis.axhline(references["entropy_rate"][0], color="black", linestyle="--", label="entropy rate")
    axis.set(xlabel="LZW dictionary size", ylabel="nats per symbol", title=f"p = {result.config['p']:g}, order 1")
    axis.legend(fontsize=7)
    return figure
