"""What skewing does to the gradient of KL: by the student's logits and by its probabilities.

KL(p, alpha p + (1 - alpha) q) of many random pairs, teachers and students of all degrees of certainty, float64. By the
probabilities its gradient is (1 - alpha) p / m, which alpha bounds by (1 - alpha) / alpha; that of plain KL, p / q, has
no bound. By the logits plain KL has the gradient q - p, which is bounded anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="DistiLLM (arXiv 2402.03898)",
    source="gradient figure",
    minutes={"smoke": 0.05, "cpu": 0.05},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The pairs and the skews."""

    seeds: tuple[int, ...] = tuple(range(5))
    """One set of pairs each."""
    pairs: int = 2000
    """Of a set."""
    vocabulary: int = 50
    """Of them."""
    alphas: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3, 0.5, 0.9)
    """Rising from 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("pairs", "vocabulary"):
            require(name, getattr(self, name), 2)
        require("the smallest of alphas", min(self.alphas, default=-1), 0, 0)
        require("the largest of alphas", max(self.alphas), 1e-6, below=1)
        if sorted(set(self.alphas)) != list(self.alphas):
            raise ValueError(f"alphas: got {self.alphas}, expected rising numbers")


PRESETS = {"smoke": Config(seeds=(0,), pairs=10, vocabulary=5, alphas=(0.0, 0.1)), "cpu": Config()}


def _claim(name: str, quantity: str, test: Any, expected: float, tolerance: float = 0, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/distillm-skew-{name}", quantity, test, expected, tolerance, kind)


CLAIMS = (
    _claim(
        "gradient",
        "largest norm of the gradient by the logits, of one alpha minus that of the alpha before; the largest",
        "below",
        0.0,
    ),
    _claim(
        "gradient-probabilities",
        "largest entry of the gradient by the probabilities times alpha / (1 - alpha), the largest over alpha above 0",
        "below",
        1 + 1e-9,
        kind="ours",
    ),
    _claim(
        "plain-unbounded",
        "ln of the largest entry of the gradient by the probabilities at alpha 0 over the largest bound of the others",
        "above",
        float(np.log(10)),
        kind="ours",
    ),
    _claim("bound", "value over -ln alpha at disjoint supports, alpha 0.1", "within", 1.0, 1e-6),
)


def pairs(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of students and teachers, with standard deviations from 0.1 to 10."""
    random = np.random.default_rng(seed)
    spreads = np.exp(random.uniform(np.log(0.1), np.log(10), (2, config.pairs, 1)))
    s, t = spreads * random.standard_normal((2, config.pairs, config.vocabulary))
    return s, t


def gradients(s: np.ndarray, t: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Norms by the logits, and largest entries by the probabilities, of every pair.

    Example:
        >>> by_logit, by_probability = gradients(np.zeros((1, 2)), np.zeros((1, 2)), 0.5)
        >>> by_logit.tolist(), by_probability.tolist()
        ([0.0], [0.5])
    """
    import jax

    log_p, log_q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (t, s))
    with jax.enable_x64(True):
        norms = np.linalg.norm(np.asarray(_by_logit(alpha)(s, t)), axis=1)
    log_m = np.logaddexp(np.log(alpha) + log_p, np.log1p(-alpha) + log_q) if alpha else log_q
    return norms, (1 - alpha) * np.exp(log_p - log_m).max(1)


@cache
def _by_logit(alpha: float) -> Any:
    import jax

    import kd

    return jax.jit(jax.grad(lambda s, t: kd.token_divergence("skew_kl", s, t, alpha=alpha).sum()))


def run(config: Config, run_dir: Path) -> Result:
    """Measure all pairs at all skews."""
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    table: dict[str, list] = {name: [] for name in ("seed", "alpha", "by logits", "by probabilities")}
    for seed in config.seeds:
        s, t = pairs(config, seed)
        largest = np.array([[x.max() for x in gradients(s, t, alpha)] for alpha in config.alphas])
        for alpha, row in zip(config.alphas, largest, strict=True):
            for column, entry in zip(table.values(), (seed, alpha, *row.tolist()), strict=True):
                column.append(entry)
        alphas = np.array(config.alphas[1:])
        bounds = (1 - alphas) / alphas
        values = (
            np.diff(largest[:, 0]).max(),
            (largest[1:, 1] / bounds).max(),
            np.log(largest[0, 1] / bounds.max()),
            at_disjoint_supports(config, seed, 0.1) / -np.log(0.1),
        )
        for claim, value in zip(CLAIMS, values, strict=True):
            measured[claim.id].append(float(value))
    return Result(measured, {"gradients": table})


def at_disjoint_supports(config: Config, seed: int, alpha: float) -> float:
    """Skew KL of a teacher and a student that share no entry."""
    import jax

    import kd

    (s, *_), (t, *_) = pairs(config, seed)
    first = np.arange(config.vocabulary) < config.vocabulary // 2
    with jax.enable_x64(True):
        s, t = np.where(first, s, -np.inf), np.where(first, -np.inf, t)
        return float(kd.token_divergence("skew_kl", s, t, alpha=alpha))


def plot(result: StoredResult) -> Figure:
    """Largest gradients against the skew."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["gradients"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, name in zip(axes, ("by logits", "by probabilities"), strict=True):
        for seed in result.seeds:
            here = table["seed"] == seed
            axis.plot(table["alpha"][here], table[name][here], "o-", markersize=3, linewidth=1)
        axis.set(xlabel="alpha", ylabel=f"largest gradient, {name}", yscale="log")
    alpha = np.geomspace(0.01, 0.9, 50)
    axes[1].plot(alpha, (1 - alpha) / alpha, "k--", linewidth=1, label="(1 - alpha) / alpha")
    axes[1].legend()
    return figure
