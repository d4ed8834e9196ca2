"""How long and how rare the tokens of LZW are: the lemmas behind theorem 4.5, each tried by itself.

Definition A.5 and lemmas A.6 to A.11 of arXiv 2404.08335, on order-1 switching sources, LZW trained on the first d
symbols of a text. Everything is computed from the dictionary and the source, without a sample but the training text.
That LZW dictionaries are 0.99-heavy-hitting is asymptotic; the exponent that they reach is reported for every size.
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

    from experiments.sources import Source

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Theorem 4.5, definition A.5, lemmas A.6 to A.11",
    minutes={"smoke": 0.1, "cpu": 0.1},
)


@dataclass(frozen=True)
class Config(results.Config):
    """Sources and dictionary sizes."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one training text per source each"""
    sources: tuple[tuple[float, float], ...] = ((0.8, 0.8), (0.1, 0.1), (0.3, 0.2))
    """(p, q) of order-1 switching sources"""
    sizes: tuple[int, ...] = (50, 200, 500, 2000, 10_000, 50_000)
    """d, the length of the training text, rising"""
    gamma: float = 1.0
    """of lemma A.11, which holds for every gamma > 0 once d is large enough"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("the number of sources", len(self.sources), 1)
        for pair in self.sources:
            for value in pair:
                require("each probability of sources", value, 1e-4, below=1)
        require("the number of sizes", len(self.sizes), 2)
        require("the smallest of sizes", min(self.sizes), 2)
        if sorted(set(self.sizes)) != list(self.sizes):
            raise ValueError(f"sizes: got {self.sizes}, expected rising values")
        require("gamma", self.gamma, 1e-6)


PRESETS = {"smoke": Config(seeds=(0, 1), sources=((0.8, 0.8), (0.3, 0.2)), sizes=(50, 200)), "cpu": Config()}

CLAIMS = (
    Claim(
        "tokenization/Thm45-heavy-hitting",
        "exponent beta of the LZW dictionary from the longest training text, smallest over sources",
        "above",
        0.99,
    ),
    Claim(
        "tokenization/heavy-hitting-exponent-grows",
        "exponent beta from the longest training text minus the one from the shortest, mean over sources",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "tokenization/LemA6-heavy-hitting-cross-entropy",
        "H(Q,P) minus beta log d with the beta reached: smallest over sources, sizes and seeds (exact, nats per token)",
        "above",
        0.0,
        deterministic=True,
    ),
    Claim(
        "tokenization/LemA7-likely-strings-short",
        "longest string with max_a P(s|a) >= delta / d^beta minus its bound: largest over sources, sizes and betas "
        "(exact, symbols)",
        "below",
        0.0,
        deterministic=True,
    ),
    Claim(
        "tokenization/LemA8-token-length",
        "longest LZW token minus 4 log(d A) / delta: largest over sources, sizes and seeds (symbols)",
        "below",
        0.0,
        deterministic=True,
    ),
    Claim(
        "tokenization/CorA9-dictionary-size",
        "LZW tokens over their least number d delta / (4 log(d A)): smallest over sources, sizes and seeds",
        "above",
        1.0,
        deterministic=True,
    ),
    Claim(
        "tokenization/LemA11-no-rare-token",
        "gamma = 1: log max_a P(t|a) of the rarest LZW token minus log(delta / d^(1 + gamma)): smallest over sources, "
        "sizes and seeds (exact, nats)",
        "above",
        0.0,
        deterministic=True,
    ),
)

BETAS = (0.25, 0.5, 0.99, 2.0)


def run(config: Config, run_dir: Path) -> Result:
    """Every source, size and seed."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization.scoring import columns, sample_texts

    rows: list[dict[str, Any]] = []
    strings: list[dict[str, Any]] = []
    for p, q in config.sources:
        source = SwitchingSource(1, p, q)
        strings += [{"p": p, "q": q, **row} for size in config.sizes for row in _string_rows(source, size)]
        for seed in config.seeds:
            (text,) = sample_texts(source, seed, (max(config.sizes),))
            rows += [{"p": p, "q": q, "seed": seed, **_row(config, source, text, size)} for size in config.sizes]
    return Result(
        measured={**_measured(config, rows, strings)},
        tables={"dictionaries": columns(rows), "strings": columns(strings)},
    )


def _row(config: Config, source: Source, text: np.ndarray, size: int) -> dict[str, Any]:
    """One dictionary: its exponent, cross-entropy, lengths and rarest token, each beside the bound."""
    from experiments.tokenization import LZWTokenizer
    from experiments.tokenization.exact import exact_losses
    from experiments.tokenization.heavy_hitting import (
        corollary_a_9_tokens,
        heavy_hitting_exponent,
        lemma_a_6_bound,
        lemma_a_8_length,
        lemma_a_11_log_probability,
        worst_log_probability,
    )
    from experiments.tokenization.theory import token_cross_entropy

    tokenizer = LZWTokenizer.train_on_prefix(text, size, alphabet=2)
    losses = exact_losses(tokenizer, source)
    beta = heavy_hitting_exponent(tokenizer.vocabulary, source, size)
    return {
        "size": size,
        "tokens": len(tokenizer),
        "least_tokens": corollary_a_9_tokens(source, size),
        "unigram": losses.unigram,
        "bigram": losses.bigram,
        "beta": beta,
        "cross_entropy": token_cross_entropy(losses.frequencies, tokenizer.vocabulary, source),
        "cross_entropy_bound": lemma_a_6_bound(beta, size),
        "longest": int(tokenizer.lengths.max()),
        "longest_bound": lemma_a_8_length(source, size),
        "rarest": float(worst_log_probability(tokenizer.vocabulary, source).min()),
        "rarest_bound": lemma_a_11_log_probability(source, size, config.gamma),
    }


def _string_rows(source: Source, size: int) -> list[dict[str, Any]]:
    from experiments.tokenization.heavy_hitting import lemma_a_6_bound, lemma_a_7_length
    from experiments.tokenization.theory import smallest_transition

    rows = []
    for beta in BETAS:
        threshold = math.log(smallest_transition(source)) - lemma_a_6_bound(beta, size)
        bound = lemma_a_7_length(source, size, beta)
        rows.append({"size": size, "beta": beta, "longest": longest_likely(source, threshold), "bound": bound})
    return rows


def longest_likely(source: Source, threshold: float) -> int:
    """Length of the longest string s with log max_a P(s | a) at or above a threshold.

    The largest max_a P(s | a) over all strings of one length that end in x follows from those that are one shorter:
    m_1(x) = max_a P(x | a), m_{l+1}(x) = max_y m_l(y) P(x | y). It falls with the length.

    Args:
        source: of order 1, no transition certain.
        threshold: nats, below 0.

    Returns:
        The length, 0 if there is no such string.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> longest_likely(SwitchingSource(1, 0.5, 0.5), math.log(0.1))
        3
    """
    kernel = np.log(source.kernel)
    largest, length = kernel.max(axis=0), 0
    while largest.max() >= threshold:
        largest, length = (largest[:, None] + kernel).max(axis=0), length + 1
    return length


def _measured(config: Config, rows: list[dict[str, Any]], strings: list[dict[str, Any]]) -> dict[str, list[float]]:
    exponents: dict[str, list[float]] = {"last": [], "growth": []}
    for seed in config.seeds:
        first, last = (
            np.array([row["beta"] for row in rows if (row["seed"], row["size"]) == (seed, size)])
            for size in (config.sizes[0], config.sizes[-1])
        )
        exponents["last"].append(float(last.min()))
        exponents["growth"].append(float((last - first).mean()))
    return {
        "tokenization/Thm45-heavy-hitting": exponents["last"],
        "tokenization/heavy-hitting-exponent-grows": exponents["growth"],
        "tokenization/LemA6-heavy-hitting-cross-entropy": [
            min(row["cross_entropy"] - row["cross_entropy_bound"] for row in rows)
        ],
        "tokenization/LemA7-likely-strings-short": [max(row["longest"] - row["bound"] for row in strings)],
        "tokenization/LemA8-token-length": [max(row["longest"] - row["longest_bound"] for row in rows)],
        "tokenization/CorA9-dictionary-size": [min(row["tokens"] / row["least_tokens"] for row in rows)],
        "tokenization/LemA11-no-rare-token": [min(row["rarest"] - row["rarest_bound"] for row in rows)],
    }


def plot(result: StoredResult) -> Figure:
    """Against d, one colour per source: the exponent beta, H(Q, P) with 0.99 log d, and the longest token."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["dictionaries"].items()}
    sizes = np.array(result.config["sizes"])
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for (p, q), colour in zip(result.config["sources"], ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False):
        here = (table["p"] == p) & (table["q"] == q)

        def mean(name: str, here: np.ndarray = here) -> np.ndarray:
            return np.array([table[name][here & (table["size"] == size)].mean() for size in sizes])

        axes[0].semilogx(sizes, mean("beta"), "o-", color=colour, label=f"p = {p:g}, q = {q:g}")
        axes[1].semilogx(sizes, mean("cross_entropy"), "o-", color=colour)
        axes[1].semilogx(sizes, mean("cross_entropy_bound"), ":", color=colour)
        axes[2].loglog(sizes, mean("longest"), "o-", color=colour)
        axes[2].loglog(sizes, mean("longest_bound"), ":", color=colour)
    axes[0].axhline(0.99, color="black", linewidth=1)
    axes[1].semilogx(sizes, 0.99 * np.log(sizes), color="black", linewidth=1, label="0.99 log d")
    axes[0].set(xlabel="d", ylabel="beta", title="heavy-hitting exponent")
    axes[1].set(xlabel="d", ylabel="H(Q, P), nats per token", title="and its bound beta log d")
    axes[2].set(xlabel="d", ylabel="symbols", title="longest token and its bound")
    axes[0].legend(fontsize=7)
    axes[1].legend(fontsize=7)
    return figure
