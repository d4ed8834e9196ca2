"""How large a dictionary must be as the source gets slower: polynomial for LZW, exponential for blocks.

Theorem 4.1 of arXiv 2404.08335 on order-1 switching sources with p = q = delta: to be within a factor f of the entropy
rate with a unigram over tokens, d = (1/delta)^(f / (0.99 (f - 1))) tokens are enough, about 1/delta^2 for f = 2; blocks
need 2^r with r = (H(pi)/H_inf - 1) / (f - 1). LZW dictionaries of all sizes on a grid are scored exactly, without a
sample but the training text; the smallest one within the factor counts, and one that none reaches is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.errors import UserError
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Theorem 4.1, equation 2",
    minutes={"smoke": 0.1, "cpu": 0.1},
)


@dataclass(frozen=True)
class Config(results.Config):
    """Sources, factors and sizes."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one training text per source each"""
    deltas: tuple[float, ...] = (0.2, 0.1, 0.05, 0.02, 0.01)
    """p = q of each source, falling"""
    factors: tuple[float, ...] = (2.0, 1.25)
    """how many times the entropy rate is allowed"""
    largest: int = 2000
    """largest dictionary that is tried"""
    steps: int = 12
    """sizes tried per factor of 10"""
    tokenizer_symbols: int = 500_000
    """length of the training text"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("the number of deltas", len(self.deltas), 2)
        for delta in self.deltas:
            require("each of deltas", delta, 1e-4, below=0.5)
        if sorted(set(self.deltas), reverse=True) != list(self.deltas):
            raise ValueError(f"deltas: got {self.deltas}, expected falling values")
        require("the number of factors", len(self.factors), 1)
        for factor in self.factors:
            require("each of factors", factor, 1.01)
        require("largest", self.largest, 4)
        require("steps", self.steps, 1)
        require("tokenizer_symbols", self.tokenizer_symbols, 2)


PRESETS = {
    "smoke": Config(seeds=(0, 1), deltas=(0.2, 0.1), factors=(2.0,), largest=40, steps=6, tokenizer_symbols=10_000),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/Thm41-polynomial-dictionary",
        "factor 2: exponent with which the smallest LZW dictionary grows in 1/delta, from the largest delta to the "
        "smallest",
        "below",
        2 / 0.99,
    ),
    Claim(
        "tokenization/Thm41-size-suffices",
        "smallest LZW dictionary over the size that the theorem promises: largest over sources, factors and seeds",
        "below",
        1.0,
        deterministic=True,
    ),
    Claim(
        "tokenization/toy-exponential-dictionary",
        "smallest delta, factor 1.25: base-2 logarithm of the smallest block dictionary over the smallest one of LZW",
        "above",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """The smallest dictionary for every source, factor and seed."""
    from experiments.tokenization.scoring import columns

    rows = [row for seed in config.seeds for delta in config.deltas for row in _rows(config, delta, seed)]
    return Result(measured={**measure(config, rows)}, tables={"sizes": columns(rows)})


def sizes(config: Config) -> list[int]:
    """The dictionary sizes that are tried, from 2 on.

    Args:
        config: largest size and steps per decade.

    Returns:
        Rising sizes.

    Example:
        >>> sizes(Config(largest=20, steps=3))
        [2, 4, 9, 20]
    """
    count = max(2, math.ceil(config.steps * math.log10(config.largest / 2)) + 1)
    return sorted({round(size) for size in np.geomspace(2, config.largest, count)})


def _rows(config: Config, delta: float, seed: int) -> list[dict[str, Any]]:
    """One row per factor."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization import LZWTokenizer
    from experiments.tokenization.exact import exact_losses
    from experiments.tokenization.scoring import sample_texts
    from experiments.tokenization.theory import block_length, theorem_4_1_size

    source = SwitchingSource(1, delta, delta)
    (text,) = sample_texts(source, seed, (config.tokenizer_symbols,))
    losses: dict[int, float] = {}
    rows = []
    for factor in sorted(config.factors, reverse=True):  # the easiest first: its sizes are tried again by the others
        for size in sizes(config):
            if size not in losses:
                losses[size] = exact_losses(LZWTokenizer.train([text], size, alphabet=2), source).unigram
            if losses[size] <= factor * source.entropy_rate():
                break
        else:
            raise UserError(
                f"no LZW dictionary up to {config.largest} is within a factor {factor:g} at delta {delta:g}"
            )
        rows.append(
            {
                "seed": seed,
                "delta": delta,
                "factor": factor,
                "entropy_rate": source.entropy_rate(),
                "unigram_entropy": source.unigram_entropy(),
                "lzw": size,
                "unigram": losses[size],
                "promised": theorem_4_1_size(source, factor),
                "log2_blocks": block_length(source, factor),
            }
        )
    return rows


def measure(config: Config, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of the claims, as far as their factors were run.

    Args:
        config: seeds, deltas and factors.
        rows: of the table `sizes`.

    Returns:
        claim id -> one value per seed, or the worst one.
    """
    at = {(row["seed"], row["delta"], row["factor"]): row for row in rows}
    first, last = config.deltas[0], config.deltas[-1]
    measured = {"tokenization/Thm41-size-suffices": [max(row["lzw"] / row["promised"] for row in rows)]}
    if 2.0 in config.factors:
        measured["tokenization/Thm41-polynomial-dictionary"] = [
            math.log(at[seed, last, 2.0]["lzw"] / at[seed, first, 2.0]["lzw"]) / math.log(first / last)
            for seed in config.seeds
        ]
    if 1.25 in config.factors:
        slowest = [at[seed, last, 1.25] for seed in config.seeds]
        measured["tokenization/toy-exponential-dictionary"] = [
            row["log2_blocks"] - math.log2(row["lzw"]) for row in slowest
        ]
    return measured


def plot(result: StoredResult) -> Figure:
    """Smallest dictionary against 1/delta, one panel per factor: LZW, the theorem's size, blocks."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column, dtype=float) for name, column in result.tables["sizes"].items()}
    factors = sorted(set(table["factor"].tolist()), reverse=True)
    figure, axes = plt.subplots(1, len(factors), figsize=(4.5 * len(factors), 3.6), layout="constrained", squeeze=False)
    for axis, factor in zip(axes[0], factors, strict=True):
        here = table["factor"] == factor
        slow, order = 1 / table["delta"][here], np.argsort(table["delta"][here])
        axis.loglog(slow, table["lzw"][here], "o", color="#D55E00", label="LZW, exact, one point per seed")
        axis.loglog(slow[order], table["promised"][here][order], color="black", label="theorem 4.1")
        # In powers of ten, as the number itself may be too large for a float.
        blocks = np.minimum(table["log2_blocks"][here] * math.log10(2), 300)
        axis.loglog(slow[order], 10.0 ** blocks[order], "--", color="#0072B2", label="blocks")
        axis.set(xlabel="1 / delta", ylabel="tokens", title=f"within {factor:g} times the entropy rate")
        axis.set_ylim(1, 1e12)
        axis.legend(fontsize=7)
    return figure
