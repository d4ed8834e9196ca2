"""A training text with the right statistics on which byte-pair encoding learns the wrong tokens.

Row T1: equation 4 and table 1 of arXiv 2404.08335. On the order-2 switching source with p = q = delta the text
(01)^(1/delta) (10)^(1/delta) ... has symbols that equal those two places before as often as typical text has, but no
runs 000.. and 111... BPE trained on it has no token for them, and fresh text of the source is written symbol by symbol.
The training text has no chance in it; the seeds draw the typical training text and the fresh texts.
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
    source="Table 1, equation 4",
    minutes={"smoke": 0.1, "cpu": 0.1},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the dictionary and the length of the texts."""

    period: int = 9
    """1/delta; the source has order 2 and p = q = delta"""
    size: int = 12
    """tokens of both dictionaries"""
    training_symbols: int = 200_000
    """length of the typical and, in whole blocks, of the misleading training text"""
    symbols: int = 1_000_000
    """length of the text that n-grams are fitted on, and of the one they are scored on"""
    alpha: float = 0.1
    """pseudo-count of the held-out models"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("period", self.period, 2)
        require("size", self.size, 3)
        require("training_symbols", self.training_symbols, 4 * self.period)
        require("symbols", self.symbols, 1)
        require("alpha", self.alpha, 1e-9)


PRESETS = {"smoke": Config(seeds=(0, 1), training_symbols=4000, symbols=5000), "cpu": Config()}

CLAIMS = (
    Claim(
        "tokenization/T1-bpe-pathology",
        "misleading training text: share of single-symbol tokens on fresh text",
        "above",
        0.8,
    ),
    Claim(
        "tokenization/T1-misled-loss",
        "misleading training text: unigram loss over H(pi) (held out)",
        "above",
        0.95,
        kind="ours",
    ),
    Claim(
        "tokenization/T1-typical-loss",
        "typical training text: unigram loss over H(pi) (held out)",
        "below",
        0.8,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """BPE on both training texts, scored on the same fresh text, for every seed."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization import BPETokenizer
    from experiments.tokenization.scoring import columns, held_out_scores, sample_texts

    source = SwitchingSource(2, 1 / config.period, 1 / config.period)
    misled = BPETokenizer.train_whole([misleading_text(config)], config.size, alphabet=2)
    rows: list[dict[str, Any]] = []
    for seed in config.seeds:
        typical, fit, fresh = sample_texts(source, seed, (config.training_symbols, config.symbols, config.symbols))
        trained = BPETokenizer.train_whole([typical], config.size, alphabet=2)
        for name, tokenizer in (("misleading", misled), ("typical", trained)):
            scores = held_out_scores(tokenizer, fit, fresh, config.alpha)
            rows.append({"training_text": name, "seed": seed, **vars(scores)})
    references = {"entropy_rate": [source.entropy_rate()], "unigram_entropy": [source.unigram_entropy()]}
    return Result(
        measured={**_measured(rows, source.unigram_entropy())},
        tables={"losses": columns(rows), "references": references, "tokens": _spelled(misled.vocabulary)},
    )


def misleading_text(config: Config) -> np.ndarray:
    """Equation 4, in as many whole blocks as fit.

    Args:
        config: period and length.

    Returns:
        1-D symbols.

    Example:
        >>> misleading_text(Config(period=2, training_symbols=20)).tolist()
        [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0]
    """
    from experiments.sources.alternating import alternating_text

    return alternating_text(config.period, config.training_symbols // (4 * config.period))


def _spelled(vocabulary: tuple[tuple[int, ...], ...]) -> dict[str, list]:
    """The misled dictionary, to look at."""
    return {"token": ["".join(map(str, token)) for token in vocabulary]}


def _measured(rows: list[dict[str, Any]], unigram_entropy: float) -> dict[str, list[float]]:
    misled, typical = ([row for row in rows if row["training_text"] == name] for name in ("misleading", "typical"))
    return {
        "tokenization/T1-bpe-pathology": [row["single_share"] for row in misled],
        "tokenization/T1-misled-loss": [row["unigram"] / unigram_entropy for row in misled],
        "tokenization/T1-typical-loss": [row["unigram"] / unigram_entropy for row in typical],
    }


def plot(result: StoredResult) -> Figure:
    """Token unigram and token bigram after either training text, with H(pi) and the entropy rate."""
    from matplotlib import pyplot as plt

    losses, references = result.tables["losses"], result.tables["references"]
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    names = np.array(losses["training_text"])
    for place, text in enumerate(("misleading", "typical")):
        for shift, (model, colour) in enumerate({"unigram": "#D55E00", "bigram": "#009E73"}.items()):
            values = np.array(losses[model])[names == text]
            label = f"token {model}" if place == 0 else None
            axis.bar(place + 0.4 * shift - 0.2, values.mean(), 0.38, yerr=np.ptp(values) / 2, color=colour, label=label)
    axis.axhline(references["unigram_entropy"][0], color="#0072B2", linestyle="--", label="H(pi)")
    axis.axhline(references["entropy_rate"][0], color="black", linestyle="--", label="entropy rate")
    axis.set_xticks([0, 1], ["misleading", "typical"])
    axis.set(xlabel="training text", ylabel="nats per symbol", title=f"{result.config['size']} BPE tokens")
    axis.legend(fontsize=8)
    return figure
