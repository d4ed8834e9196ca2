"""Another temperature for a teacher whose k largest log probabilities at temperature 1 are stored.

At temperature T the bucket of all others needs sum p^(1 / T) over the tail, which is not stored. Guesses: to raise the
bucket's mass to 1 / T as if it were one entry, or to spread it evenly over the tail first. What is exact: to store the
log-sum-exp at T beside the raw logits, and to renormalise on the k. The error is the total variation between the true
k + 1 probabilities at T and the guessed ones, over random teachers with Zipf's tails.
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
    paper="Sparse teachers (stored logits)",
    source="temperature of stored log probabilities",
    minutes={"smoke": 0.05, "cpu": 0.06},
)
BUCKET, EVEN, STORED, RENORM = GUESSES = ("bucket as one entry", "tail spread evenly", "log-sum-exp stored", "renorm")


@dataclass(frozen=True)
class Config(results.Config):
    """The teachers and what is stored of them."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One set of teachers each."""
    teachers: int = 200
    """Of a set."""
    vocabulary: int = 1000
    """Of them."""
    kept: int = 16
    """Stored entries."""
    spread: float = 1.5
    """Standard deviation of the noise on the logits."""
    temperatures: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    """Rising from 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("teachers", self.teachers, 1)
        require("kept", self.kept, 1, below=self.vocabulary)
        require("the smallest of temperatures", min(self.temperatures, default=0), 1, 1)
        if sorted(set(self.temperatures)) != list(self.temperatures):
            raise ValueError(f"temperatures: got {self.temperatures}, expected rising numbers")


PRESETS = {"smoke": Config(seeds=(0,), teachers=3, vocabulary=30, kept=4), "cpu": Config()}

CLAIMS = (
    Claim(
        "distillation/topk-temperature",
        "least difference of the error of the bucket between successive temperatures, total variation",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "distillation/topk-temperature-even",
        "error of the evenly spread tail minus that of the bucket as one entry at temperature 2",
        "below",
        0.0,
        kind="ours",
    ),
    Claim(
        "distillation/topk-temperature-exact",
        "largest error of the stored log-sum-exp and of the renormalised form, any temperature",
        "below",
        1e-12,
        kind="control",
    ),
)


def logits(config: Config, seed: int) -> np.ndarray:
    """Teachers' logits (teachers, V), falling.

    Example:
        >>> z = logits(Config(), 0)
        >>> z.shape, bool((np.diff(z) <= 0).all())
        ((200, 1000), True)
    """
    random = np.random.default_rng(seed)
    z = -2 * np.log(1 + np.arange(config.vocabulary)) + config.spread * random.standard_normal(
        (config.teachers, config.vocabulary)
    )
    return -np.sort(-z, axis=1)


def errors(z: np.ndarray, k: int, temperature: float) -> dict[str, float]:
    """Total variation of every guess, mean over the teachers.

    Args:
        z: logits (N, V), falling.
        k: stored.
        temperature: asked for.

    Returns:
        Guess -> error.

    Example:
        >>> found = errors(logits(Config(), 0), 16, 1.0)
        >>> max(found.values()) < 1e-12
        True
    """
    from scipy.special import logsumexp

    def joined(stored: np.ndarray, rest: np.ndarray) -> np.ndarray:
        both = np.concatenate([stored, rest], axis=1)
        return np.exp(both - logsumexp(both, axis=1, keepdims=True))

    log_p = z - logsumexp(z, axis=1, keepdims=True)
    stored, rest = log_p[:, :k] / temperature, logsumexp(log_p[:, k:], axis=1, keepdims=True)
    tail = z.shape[1] - k
    truth = joined(stored, logsumexp(log_p[:, k:] / temperature, axis=1, keepdims=True))
    normaliser = logsumexp(z / temperature, axis=1, keepdims=True)
    raw = np.exp(z[:, :k] / temperature - normaliser)
    guesses = {
        BUCKET: joined(stored, rest / temperature),
        EVEN: joined(stored, np.log(tail) + (rest - np.log(tail)) / temperature),
        STORED: np.concatenate([raw, 1 - raw.sum(1, keepdims=True)], axis=1),
    }
    found = {name: float(np.abs(guess - truth).sum(1).mean() / 2) for name, guess in guesses.items()}
    inside = truth[:, :k] / truth[:, :k].sum(1, keepdims=True)
    return found | {RENORM: float(np.abs(renormalised(log_p[:, :k], temperature) - inside).sum(1).mean() / 2)}


def renormalised(stored: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities on the stored entries at a temperature."""
    e = np.exp((stored - stored.max(1, keepdims=True)) / temperature)
    return e / e.sum(1, keepdims=True)


def run(config: Config, run_dir: Path) -> Result:
    """All teachers at all temperatures."""
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    table: dict[str, list] = {name: [] for name in ("seed", "temperature", *GUESSES)}
    for seed in config.seeds:
        z = logits(config, seed)
        found = {temperature: errors(z, config.kept, temperature) for temperature in config.temperatures}
        for temperature, each in found.items():
            row = (seed, temperature, *(each[name] for name in GUESSES))
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
        at_two = errors(z, config.kept, 2.0)
        numbers = (
            np.diff([each[BUCKET] for each in found.values()]).min(),
            at_two[EVEN] - at_two[BUCKET],
            max(each[name] for each in found.values() for name in (STORED, RENORM)),
        )
        for claim, number in zip(CLAIMS, numbers, strict=True):
            measured[claim.id].append(float(number))
    return Result(measured, {"errors": table})


def plot(result: StoredResult) -> Figure:
    """Errors against the temperature, mean over the seeds."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["errors"].items()}
    temperatures = np.unique(table["temperature"])
    figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for name in GUESSES:
        means = [table[name][table["temperature"] == temperature].mean() for temperature in temperatures]
        axis.plot(temperatures, means, "o-", markersize=3, linewidth=1, label=name)
    axis.set(xlabel="temperature", ylabel="total variation from the truth")
    axis.legend(fontsize=8)
    return figure
