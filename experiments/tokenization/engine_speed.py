"""How fast the encoders and our trainer of byte-pair encoding are, and how their time grows with the text.

On the order-2 switching source, p = q = 0.8, with a dictionary of 1,000 tokens: characters per second of the greedy,
of the minimal and of the merging encoder; seconds of `BPETokenizer.train_whole` on one string that is never cut, and
the exponent of its growth; and the trainer of Hugging Face's `tokenizers` on one uncut string, which is quadratic,
extrapolated by its own power law to the longest of our lengths. All times are CPU times of one call, which other
processes disturb least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="our engines (ours)",
    minutes={"smoke": 0.1, "cpu": 0.5},
)
OURS, PEER = "train_whole", "Hugging Face, uncut"
ENCODERS = ("greedy", "minimal", "merges")


@dataclass(frozen=True)
class Config(results.Config):
    """Lengths and sizes."""

    size: int = 1000
    """of the dictionary"""
    encoded: int = 2_000_000
    """characters that are encoded"""
    lengths: tuple[int, ...] = (100_000, 300_000, 1_000_000)
    """characters that our trainer is timed on, rising"""
    peer_lengths: tuple[int, ...] = (25_000, 50_000, 100_000)
    """characters that Hugging Face's trainer is timed on, rising"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("size", self.size, 3)
        require("encoded", self.encoded, 1)
        for name in ("lengths", "peer_lengths"):
            values = getattr(self, name)
            require(f"the number of {name}", len(values), 2)
            require(f"the smallest of {name}", min(values), self.size)
            if sorted(set(values)) != list(values):
                raise ValueError(f"{name}: got {values}, expected rising values")


PRESETS = {
    "smoke": Config(seeds=(0,), size=50, encoded=10_000, lengths=(2000, 4000), peer_lengths=(1000, 2000)),
    "cpu": Config(),
}

CLAIMS = (
    Claim("tokenization/speed-greedy", "million characters per second, greedy encoder", "above", 5.0, kind="ours"),
    Claim("tokenization/speed-minimal", "million characters per second, minimal encoder", "above", 1.0, kind="ours"),
    Claim(
        "tokenization/speed-merges",
        "million characters per second, encoder by merges, on one string",
        "above",
        0.5,
        kind="ours",
    ),
    Claim(
        "tokenization/speed-trainer",
        "seconds of our trainer on one string of 1,000,000 characters, 1,000 tokens",
        "below",
        5.0,
        kind="ours",
    ),
    Claim(
        "tokenization/speed-growth",
        "exponent with which the time of our trainer grows with the length, from 100,000 to 1,000,000 characters",
        "below",
        1.2,
        kind="ours",
    ),
    Claim(
        "tokenization/speed-peer",
        "time of Hugging Face's trainer on one string of 1,000,000 characters, extrapolated, over ours",
        "above",
        100.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Time everything once per seed, each on a text of its own."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization import BPETokenizer, GreedyTokenizer, MinimalTokenizer
    from experiments.tokenization.scoring import columns, sample_texts

    rows: list[dict[str, Any]] = []
    for seed in config.seeds:
        most = max(config.encoded, config.lengths[-1], config.peer_lengths[-1])
        (text,) = sample_texts(SwitchingSource(2, 0.8, 0.8), seed, (most,))

        def add(what: str, characters: int, call: Callable[[], Any], seed: int = seed) -> None:
            rows.append({"seed": seed, "what": what, "characters": characters, "seconds": cpu_seconds(call)})

        for length in config.lengths:
            add(OURS, length, partial(BPETokenizer.train_whole, [text[:length]], config.size, alphabet=2))
        for length in config.peer_lengths:
            add(PEER, length, partial(train_peer, text[:length], config.size))
        merges = BPETokenizer.train_whole([text[: config.lengths[0]]], config.size, alphabet=2)
        tokenizers = (GreedyTokenizer(merges.vocabulary), MinimalTokenizer(merges.vocabulary), merges)
        for name, tokenizer in zip(ENCODERS, tokenizers, strict=True):
            tokenizer.encode(text[: config.encoded])  # the first call makes the tables
            add(name, config.encoded, partial(tokenizer.encode, text[: config.encoded]))
    return Result(measured={**measure(config, rows)}, tables={"times": columns(rows)})


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU time of one call.

    Args:
        call: what is timed.

    Returns:
        Seconds, of all threads together.

    Example:
        >>> cpu_seconds(lambda: None) < 1
        True
    """
    start = time.process_time()
    call()
    return time.process_time() - start


def train_peer(text: NDArray[np.int32], size: int) -> int:
    """Train Hugging Face's byte-pair encoding on one string as it is.

    Args:
        text: of 0 and 1.
        size: of the dictionary.

    Returns:
        Tokens that were learned.

    Example:
        >>> train_peer(np.array([0, 1, 0, 1, 1]), 3)
        3
    """
    from tokenizers import Tokenizer, models, trainers

    from experiments.tokenization.letters import as_text, letter_codes, letters

    engine = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters(2), special_tokens=[], show_progress=False)
    engine.train_from_iterator([as_text(letter_codes((0, 1))[text])], trainer)
    return engine.get_vocab_size()


def power_law(characters: np.ndarray, seconds: np.ndarray) -> tuple[float, Callable[[float], float]]:
    """The least-squares line of log seconds over log characters.

    Args:
        characters: two lengths or more.
        seconds: at them.

    Returns:
        Its slope, and the seconds that it gives for a length.

    Example:
        >>> slope, at = power_law(np.array([1.0, 2.0, 4.0]), np.array([3.0, 12.0, 48.0]))
        >>> round(slope, 6), round(at(10.0), 6)
        (2.0, 300.0)
    """
    slope, level = np.polyfit(np.log(characters), np.log(np.maximum(seconds, 1e-9)), 1)
    return float(slope), lambda length: float(np.exp(level + slope * np.log(length)))


def measure(config: Config, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of the claims.

    Args:
        config: seeds.
        rows: of the table `times`.

    Returns:
        claim id -> one value per seed; those about 1,000,000 characters and 1,000 tokens only if that was timed.
    """
    measured: dict[str, list[float]] = {}

    def add(id: str, value: float) -> None:
        measured.setdefault(f"tokenization/speed-{id}", []).append(value)

    for seed in config.seeds:
        times = {
            name: np.array([(row["characters"], row["seconds"]) for row in rows if (row["seed"], row["what"]) == key]).T
            for name in (OURS, PEER, *ENCODERS)
            for key in [(seed, name)]
        }
        for name in ENCODERS:
            characters, seconds = times[name]
            add(name, 1e-6 * characters[0] / max(seconds[0], 1e-9))
        add("growth", power_law(*times[OURS])[0])
        if (config.size, config.lengths[-1]) == (1000, 1_000_000):
            add("trainer", times[OURS][1, -1])
            add("peer", power_law(*times[PEER])[1](1e6) / times[OURS][1, -1])
    return measured


def plot(result: StoredResult) -> Figure:
    """Left: training time against length, with the power laws. Right: characters per second of the encoders."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["times"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", width_ratios=(2, 1))
    for name, colour in ((OURS, "#D55E00"), (PEER, "#0072B2")):
        here = table["what"] == name
        characters, seconds = table["characters"][here].astype(float), table["seconds"][here]
        slope, at = power_law(characters, seconds)
        axes[0].loglog(characters, np.maximum(seconds, 1e-9), "o", color=colour, markersize=4)
        line = np.array([characters.min(), max(result.config["lengths"])])
        axes[0].loglog(line, [at(x) for x in line], color=colour, linewidth=1, label=f"{name}: exponent {slope:.2f}")
    axes[0].set(xlabel="characters of one string", ylabel="CPU seconds of training")
    axes[0].legend(fontsize=7)
    for position, name in enumerate(ENCODERS):
        here = table["what"] == name
        speed = 1e-6 * table["characters"][here] / np.maximum(table["seconds"][here], 1e-9)
        axes[1].semilogy([position] * len(speed), speed, "o", color="#009E73", markersize=4)
    axes[1].set_xticks(range(len(ENCODERS)), ENCODERS)
    axes[1].set(ylabel="million characters per second", xlim=(-0.5, 2.5))
    return figure
