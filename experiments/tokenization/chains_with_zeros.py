"""Conjecture 1: does a bound like that of theorem 4.1 hold where transition probabilities are 0?

Conjecture 1 of arXiv 2404.08335 drops assumption 4.2 and takes eps = log(H(pi) / H_inf) / (0.99 log d) in place of
log(1 / delta) / (0.99 log d): some tokenizer with at most d tokens has L <= H_inf / (1 - eps) with a unigram. Here the
best of four is taken, characters, blocks, LZW and BPE (with the greedy encoder), all scored exactly, on ergodic chains
of order 1 with zeros. Sizes at which eps >= 1 are left out, as nothing is conjectured there.

One chain is meant to break it: eight symbols, none of which follows itself, all else equally likely. Two neighbours
share I = H(pi) - H_inf = log(8/7) nats, the same at every cut, and d tokens that are about equally likely are about
log d / H_inf symbols long, so that a unigram should lose about H_inf (1 + I / log d); the conjecture has only
H_inf (1 + log(1 + I / H_inf) / (0.99 log d)), about I / H_inf in place of I, which is less where H_inf is above 1 nat.
This refutes nothing: the conjecture says "some tokenizer", and one that cuts where neighbours share nothing may do
better than these four.
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
    from numpy.typing import NDArray

    from experiments.sources import Source

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Conjecture 1",
    minutes={"smoke": 0.1, "cpu": 0.5},
)
TOKENIZERS = ("characters", "blocks", "LZW", "BPE")
NO_REPETITION = "no repetition"


@dataclass(frozen=True)
class Config(results.Config):
    """Sizes and texts."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one training text per chain each, and one random chain"""
    sizes: tuple[int, ...] = (10, 20, 50, 100, 200, 500)
    """dictionary sizes d"""
    training_symbols: int = 200_000
    """length of the training text of LZW and BPE"""
    alphabet: int = 4
    """symbols of the random chains"""
    successors: int = 2
    """symbols that may follow each one in the random chains"""
    minimum: float = 0.1
    """smallest positive transition probability of the random chains"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("the number of sizes", len(self.sizes), 1)
        require("the smallest of sizes", min(self.sizes), 8)
        if sorted(set(self.sizes)) != list(self.sizes):
            raise ValueError(f"sizes: got {self.sizes}, expected rising values")
        require("training_symbols", self.training_symbols, 10)
        require("alphabet", self.alphabet, 3, 8)
        require("successors", self.successors, 2, self.alphabet - 1)
        require("minimum", self.minimum, 0, 1 / self.successors)


PRESETS = {
    "smoke": Config(seeds=(0, 1), sizes=(10, 20), training_symbols=5000),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/Conj1-without-positivity",
        "loss of the best tokenizer minus the conjectured bound: largest over chains but the one without repetitions, "
        "sizes and seeds (exact, nats per symbol)",
        "below",
        0.0,
        deterministic=True,
    ),
    Claim(
        "tokenization/Conj1-no-repetition",
        "eight symbols without repetitions: loss of the best tokenizer minus the conjectured bound, smallest over "
        "sizes and seeds (exact, nats per symbol)",
        "above",
        0.0,
        kind="ours",
        deterministic=True,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """All tokenizers and sizes on every chain."""
    from experiments.tokenization.scoring import columns

    rows = []
    for seed in config.seeds:
        for name, source in chains(config, seed).items():
            rows += [{"seed": seed, "chain": name, **row} for row in _rows(config, source, seed)]
    return Result(measured={**measure(rows)}, tables={"losses": columns(rows)})


def chains(config: Config, seed: int) -> dict[str, Source]:
    """The chains, all ergodic and with zeros.

    Args:
        config: of the random one.
        seed: of the random one.

    Returns:
        name -> source.

    Example:
        >>> {name: source.alphabet for name, source in chains(Config(), 0).items()}
        {'no 00': 2, 'three states': 3, 'cycle': 6, 'slow cycle': 6, 'random': 4, 'no repetition': 8}
    """
    from experiments.sources import MarkovSource, ThreeStateSource

    return {
        "no 00": MarkovSource([[0.0, 1.0], [0.5, 0.5]]),
        "three states": ThreeStateSource(0.1),
        "cycle": MarkovSource(_cycle(6, stay=0.5)),
        "slow cycle": MarkovSource(_cycle(6, stay=0.9)),
        "random": MarkovSource(
            random_kernel(np.random.default_rng(seed), config.alphabet, config.successors, config.minimum)
        ),
        NO_REPETITION: MarkovSource((1 - np.eye(8)) / 7),
    }


def _cycle(size: int, stay: float) -> NDArray[np.float64]:
    """Round and round, with some rounds of rest at the first symbol."""
    kernel = np.roll(np.eye(size), 1, axis=1)
    kernel[0, :2] = stay, 1 - stay
    return kernel


def random_kernel(
    rng: np.random.Generator, alphabet: int, successors: int, minimum: float = 0.0
) -> NDArray[np.float64]:
    """Rows with few positive entries; each symbol may be followed by the next one and by others.

    As each may be followed by the next one, all symbols are reached from all.

    Args:
        rng: of the random numbers.
        alphabet: A.
        successors: positive entries of a row, 2 to A, from Dir(1, ..., 1) mixed with the uniform law.
        minimum: smallest of them, at most 1 over their number.

    Returns:
        (A, A).

    Example:
        >>> (random_kernel(np.random.default_rng(0), 4, 2) > 0).sum(axis=1).tolist()
        [2, 2, 2, 2]
    """
    kernel = np.zeros((alphabet, alphabet))
    for symbol, row in enumerate(kernel):
        following = (symbol + 1) % alphabet
        others = rng.choice(np.delete(np.arange(alphabet), following), successors - 1, replace=False)
        row[[following, *others]] = minimum + (1 - successors * minimum) * rng.dirichlet(np.ones(successors))
    return kernel


def _rows(config: Config, source: Source, seed: int) -> list[dict[str, Any]]:
    """One row per size."""
    from experiments.tokenization import BPETokenizer, GreedyTokenizer, LZWTokenizer
    from experiments.tokenization.exact import exact_losses
    from experiments.tokenization.scoring import sample_texts
    from experiments.tokenization.theory import block_loss

    (text,) = sample_texts(source, seed, (config.training_symbols,))
    # Merges do not depend on the size: a smaller dictionary is the beginning of a larger one.
    merged = BPETokenizer.train_whole([text], config.sizes[-1], alphabet=source.alphabet).vocabulary
    rows = []
    for size in config.sizes:
        lzw = LZWTokenizer.train([text], size, alphabet=source.alphabet)
        # The rounding of a logarithm must not cost a block length.
        longest = int(math.log(size) / math.log(source.alphabet) + 1e-9)
        losses = {
            "characters": source.unigram_entropy(),
            "blocks": block_loss(source, longest),
            "LZW": exact_losses(lzw, source).unigram,
            "BPE": exact_losses(GreedyTokenizer(merged[:size]), source).unigram,
        }
        rows.append({"size": size, "bound": _bound(source, size), "entropy_rate": source.entropy_rate(), **losses})
    return rows


def _bound(source: Source, size: int) -> float:
    """What is conjectured; infinite where nothing is."""
    from experiments.tokenization.theory import conjecture_1_bound

    try:
        return conjecture_1_bound(source, size)
    except ValueError:
        return math.inf


def measure(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of the claims.

    Args:
        rows: of the table `losses`.

    Returns:
        claim id -> one value; no claim where nothing is conjectured.
    """
    above = [
        (row["chain"], min(row[name] for name in TOKENIZERS) - row["bound"])
        for row in rows
        if math.isfinite(row["bound"])
    ]
    on_most = [value for chain, value in above if chain != NO_REPETITION]
    on_last = [value for chain, value in above if chain == NO_REPETITION]
    measured = {}
    if on_most:
        measured["tokenization/Conj1-without-positivity"] = [max(on_most)]
    if on_last:
        measured["tokenization/Conj1-no-repetition"] = [min(on_last)]
    return measured


def plot(result: StoredResult) -> Figure:
    """Loss over entropy rate against dictionary size, one panel per chain: four tokenizers and the conjecture."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["losses"].items()}
    names, sizes = list(dict.fromkeys(table["chain"].tolist())), np.array(result.config["sizes"])
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(10, 5.6), layout="constrained")
    for axis, chain in zip(axes.ravel(), names, strict=False):
        for name, colour in zip(TOKENIZERS, ("#0072B2", "#56B4E9", "#009E73", "#D55E00"), strict=True):
            axis.semilogx(sizes, _means(table, chain, name, sizes), "o-", color=colour, markersize=3, label=name)
        axis.semilogx(sizes, _means(table, chain, "bound", sizes), color="black", label="conjecture 1")
        axis.set(title=chain, xlabel="dictionary size", ylabel="loss / entropy rate")
        axis.axhline(1, color="black", linewidth=0.6, linestyle=":")
        axis.set_ylim(top=1.1 * _means(table, chain, "characters", sizes)[0])
    axes.ravel()[0].legend(fontsize=7)
    return figure


def _means(table: dict[str, Any], chain: str, name: str, sizes: NDArray) -> list[float]:
    """Mean over seeds of loss over entropy rate at each size."""
    ratio, here = table[name] / table["entropy_rate"], table["chain"] == chain
    return [float(ratio[here & (table["size"] == size)].mean()) for size in sizes]
