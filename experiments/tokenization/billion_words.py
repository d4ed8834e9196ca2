"""Figure 7's sweep at the published dictionary sizes on news: four tokenizers against character k-grams.

Only the published sizes are here, 5,000 to 80,000 tokens, and **it has not been run**: a test runs it with small sizes
on generated sentences that TFDS reads as LM1B. `tokenization/text_tokenizers` is the same sweep on text that needs no
download.

What differs from figure 7 of arXiv 2404.08335: the text, which is LM1B for the tokenizers and for what is scored
(WikiText-103 and GLUE there, for which `tokenization/dictionary_size` has a preset), and that the loss is held out,
with the in-sample one beside it. Each seed has sentences of its own, for training from the training split and for
scoring from the test split; of the latter, characters that the training text does not have are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.tokenization import text_tokenizers
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.sources import Corpus

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figure 7, Table 2, on LM1B",
    # A guess: nearly all of it is the training of the Unigram tokenizers.
    minutes={"paper": 2000},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The text and the dictionary sizes."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """sentences of its own for each position"""
    training_characters: int = 10_000_000
    """of each seed"""
    scored_characters: int = 2_000_000
    """of each seed"""
    sizes: tuple[int, ...] = (5000, 6000, 8000, 12_000, 20_000, 32_000, 50_000, 80_000)
    """dictionary sizes d, rising"""
    orders: int = 4
    """character k-grams with k up to this"""
    alpha: float = 0.1
    """pseudo-count of every n-gram model in a held-out loss"""
    data_dir: str = ""
    """where TFDS's data sets are prepared; empty: its default, ~/tensorflow_datasets"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("training_characters", self.training_characters, 1)
        require("scored_characters", self.scored_characters, 1)
        self.sweep()

    def sweep(self) -> text_tokenizers.Config:
        """What `text_tokenizers` needs to know."""
        return text_tokenizers.Config(sizes=self.sizes, orders=self.orders, alpha=self.alpha)


PRESETS = {"paper": Config()}

CLAIMS = (
    Claim(
        "tokenization/LM1B-tokens-beat-char-bigram",
        "LM1B: unigram over the smallest dictionary of each tokenizer, the largest loss, minus character bigram "
        "(held out, nats per character)",
        "below",
        0.0,
    ),
    Claim(
        "tokenization/LM1B-loss-falls-with-size",
        "LM1B: largest change of the loss of one of the four tokenizers to its next size "
        "(in-sample, nats per character)",
        "below",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """All tokenizers, sizes and k-grams on the sentences of each seed."""
    from experiments.runs import record_data
    from experiments.tokenization.scoring import columns

    corpora = texts(config)
    data = {part.name: part.sha256 for pair in corpora for part in pair}
    record_data(run_dir, data)
    rows: list[dict[str, Any]] = []
    left_out: list[float] = []
    for seed, (fit, scored) in zip(config.seeds, corpora, strict=True):
        known = scored.restricted_to(fit.alphabet)
        left_out.append(1 - known.size / scored.size)
        seen, unseen = (part.characters(fit.alphabet) for part in (fit, known))
        found = text_tokenizers.loss_rows(config.sweep(), seen, unseen, fit.alphabet)
        rows += [{"seed": seed, **row} for row in found]
    tables: dict[str, dict[str, list]] = {"losses": columns(rows)}
    tables["text"] = {"seed": list(config.seeds), "left_out": left_out}
    return Result(measured={**measure(config, rows)}, tables=tables, data=data)


def texts(config: Config) -> list[tuple[Corpus, Corpus]]:
    """Sentences of each seed.

    Args:
        config: how many, and where they are.

    Returns:
        (training part, scored part), one pair per seed, none of which overlap.
    """
    from experiments.sources.billion_words import load_billion_words, read_sentences

    parts = []
    for split, characters in (("train", config.training_characters), ("test", config.scored_characters)):
        source, first, corpora = load_billion_words(split, config.data_dir or None), 0, []
        for number in range(len(config.seeds)):
            corpus, first = read_sentences(source, first, characters, f"LM1B, {split}, part {number}")
            corpora.append(corpus)
        parts.append(corpora)
    return list(zip(*parts, strict=True))


def measure(config: Config, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of the claims.

    Args:
        config: seeds and sizes.
        rows: of the table `losses`.

    Returns:
        claim id -> one value per seed.
    """
    at = {(row["seed"], row["tokenizer"], row["size"]): row for row in rows}
    bigram = {row["seed"]: row["held_out"] for row in rows if row["tokenizer"] == "characters, 2-gram"}
    names, sizes = text_tokenizers.TOKENIZERS, config.sizes
    worst = [max(at[seed, name, sizes[0]]["held_out"] for name in names) - bigram[seed] for seed in config.seeds]
    measured = {"tokenization/LM1B-tokens-beat-char-bigram": worst}
    if len(sizes) > 1:
        measured["tokenization/LM1B-loss-falls-with-size"] = [
            max(float(np.diff([at[seed, name, size]["in_sample"] for size in sizes]).max()) for name in names)
            for seed in config.seeds
        ]
    return measured


def plot(result: StoredResult) -> Figure:
    """Held-out loss against dictionary size, as in `text_tokenizers`."""
    return text_tokenizers.plot(result)
