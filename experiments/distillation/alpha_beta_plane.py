"""Where in the vocabulary the gradient of a divergence goes: the AB plane, and which half KL and reverse KL fit first.

Teachers have Zipf's probabilities in random order with noise; students are a teacher with noise. For every alpha and
beta, the share of the gradient's mass (sum |d/ds|) on the tenth of the vocabulary with the largest mismatch |p - q| and
on the tenth that the student is surest of. Then students are trained by gradient descent, from random logits, and the
gap sum |p - q| is followed over the head (the largest entries with half of the teacher's mass) and over the tail.
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
    paper="ABKD and AKL (arXiv 2404.02657)",
    source="their analyses of the head and the tail",
    minutes={"smoke": 0.1, "cpu": 0.2},
)
KINDS = ("forward_kl", "reverse_kl")
LOW, MIDDLE, HIGH = 0.2, 0.5, 1.0  # of alpha and beta, that claims are about


@dataclass(frozen=True)
class Config(results.Config):
    """The pairs, the plane and the descent."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One set of pairs each."""
    pairs: int = 100
    """Of a set."""
    vocabulary: int = 200
    """Of them."""
    noise: float = 1.0
    """Standard deviation of the difference of the logits."""
    exponents: tuple[float, ...] = (0.0, LOW, MIDDLE, 0.7, HIGH, 1.5)
    """Of alpha and of beta."""
    steps: int = 1000
    """Of the descent."""
    rate: float = 2.0
    """Of a step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("pairs", "steps"):
            require(name, getattr(self, name), 1)
        require("vocabulary", self.vocabulary, 10)
        require("noise", self.noise, 1e-3)
        require("rate", self.rate, 1e-6)
        missing = {LOW, MIDDLE, HIGH} - set(self.exponents)
        if missing:
            raise ValueError(f"exponents: got {self.exponents}, expected {sorted(missing)} among them")


PRESETS = {
    "smoke": Config(seeds=(0,), pairs=3, vocabulary=20, exponents=(LOW, MIDDLE, HIGH), steps=5),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/abkd-gradient-mass",
        "share of the gradient's mass on the largest mismatches, alpha 1 minus alpha 0.2, beta 0.5",
        "above",
        0.0,
    ),
    Claim(
        "distillation/abkd-gradient-mass-beta",
        "share of the gradient's mass on what the student is surest of, beta 1 minus beta 0.2, alpha 0.5",
        "above",
        0.0,
    ),
    Claim(
        "distillation/akl-head-tail",
        "ln of the ratio of the steps in which the gaps of head and tail halve, forward KL minus reverse KL",
        "below",
        0.0,
    ),
)


def pairs(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of students and teachers (pairs, V).

    Example:
        >>> s, t = pairs(Config(), 0)
        >>> t.shape
        (100, 200)
    """
    random = np.random.default_rng(seed)
    t = zipf_teachers(random, config.pairs, config.vocabulary)
    return t + config.noise * random.standard_normal(t.shape), t


def zipf_teachers(random: np.random.Generator, pairs: int, vocabulary: int) -> np.ndarray:
    """Logits (pairs, V) of Zipf's probabilities in random order, with noise.

    Example:
        >>> zipf_teachers(np.random.default_rng(0), 3, 5).shape
        (3, 5)
    """
    zipf = -np.log(1 + np.arange(vocabulary))
    t = np.stack([random.permutation(zipf) for _ in range(pairs)])
    return t + 0.3 * random.standard_normal(t.shape)


def softmax(z: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def tenth(x: np.ndarray) -> np.ndarray:
    """Which entries of each row are its tenth largest part.

    Example:
        >>> int(tenth(np.arange(20.0)[None]).sum())
        2
    """
    return np.argsort(np.argsort(-x, axis=1), axis=1) < x.shape[1] // 10


@cache
def _gradient(alpha: float, beta: float) -> Any:
    import jax

    import kd

    return jax.jit(jax.grad(lambda s, t: kd.token_divergence("alpha_beta", s, t, alpha=alpha, beta=beta).sum()))


def shares(s: np.ndarray, t: np.ndarray, alpha: float, beta: float) -> tuple[float, float]:
    """Shares of the gradient's mass on the largest mismatches and on what the student is surest of, means over rows."""
    p, q = softmax(t), softmax(s)
    mass = np.abs(np.asarray(_gradient(alpha, beta)(s, t), np.float64))
    mass = mass / mass.sum(1, keepdims=True)
    mismatch, sure = (float((mass * tenth(x)).sum(1).mean()) for x in (np.abs(p - q), q))
    return mismatch, sure


@cache
def _descent(kind: str, steps: int, rate: float) -> Any:
    """(s, t, head) -> gaps of head and tail before every step (steps, 2, pairs)."""
    import jax
    import jax.numpy as jnp

    import kd

    def descend(s: Any, t: Any, head: Any) -> Any:
        p = jax.nn.softmax(t)

        def step(s: Any, _: None) -> Any:
            gap = jnp.abs(p - jax.nn.softmax(s))
            kept = jnp.stack([jnp.sum(gap * head, 1), jnp.sum(gap * (1 - head), 1)])
            return s - rate * jax.grad(lambda s: kd.token_divergence(kind, s, t).sum())(s), kept

        return jax.lax.scan(step, s, length=steps)[1]

    return jax.jit(descend)


def heads(t: np.ndarray) -> np.ndarray:
    """The largest entries of each row with half of the mass, at least the first.

    Example:
        >>> heads(np.log(np.array([[0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]))).astype(int).tolist()
        [[0, 1, 0], [0, 0, 1]]
    """
    p = softmax(t)
    order = np.argsort(-p, axis=1)
    mass = np.cumsum(np.take_along_axis(p, order, 1), axis=1)
    first = (mass <= 0.5) | (np.arange(p.shape[1]) == 0)
    found = np.zeros(p.shape, bool)
    np.put_along_axis(found, order, first, 1)
    return found


def halved(gap: np.ndarray) -> np.ndarray:
    """The first step at which each column is at most half of the first; the number of steps if there is none.

    Example:
        >>> halved(np.array([[4.0, 1.0], [3.0, 1.0], [1.0, 1.0]])).tolist()
        [2, 3]
    """
    below = gap <= gap[0] / 2
    return np.where(below.any(0), below.argmax(0), len(gap))


def run(config: Config, run_dir: Path) -> Result:
    """The plane and the descents of every set."""
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    table: dict[str, list] = {name: [] for name in ("seed", "alpha", "beta", "mismatch", "sure")}
    gaps = []
    for seed in config.seeds:
        s, t = pairs(config, seed)
        found = {(a, b): shares(s, t, a, b) for a in config.exponents for b in config.exponents}
        for (alpha, beta), both in found.items():
            for column, entry in zip(table.values(), (seed, alpha, beta, *both), strict=True):
                column.append(entry)
        start = np.random.default_rng([seed, 1]).standard_normal(t.shape)
        paths = [np.asarray(_descent(kind, config.steps, config.rate)(start, t, heads(t))) for kind in KINDS]
        gaps.append(np.stack([path.mean(2) for path in paths]))
        ratios = [np.log((1 + halved(path[:, 0])) / (1 + halved(path[:, 1]))).mean() for path in paths]
        numbers = (
            found[HIGH, MIDDLE][0] - found[LOW, MIDDLE][0],
            found[MIDDLE, HIGH][1] - found[MIDDLE, LOW][1],
            ratios[0] - ratios[1],
        )
        for claim, number in zip(CLAIMS, numbers, strict=True):
            measured[claim.id].append(float(number))
    series = {"gaps": {kind: np.stack(gaps)[:, i] for i, kind in enumerate(KINDS)}}
    return Result(measured, {"plane": table}, series)


def plot(result: StoredResult) -> Figure:
    """Two maps over the plane, and the gaps of head and tail over the steps."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["plane"].items()}
    exponents = np.unique(table["alpha"])
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, name in zip(axes, ("mismatch", "sure"), strict=False):
        cells = {(a, b): (table["alpha"] == a) & (table["beta"] == b) for a in exponents for b in exponents}
        mean = [[table[name][cells[a, b]].mean() for a in exponents] for b in exponents]
        figure.colorbar(axis.imshow(mean, origin="lower"), ax=axis)
        axis.set_xticks(range(len(exponents)), [f"{a:g}" for a in exponents])
        axis.set_yticks(range(len(exponents)), [f"{b:g}" for b in exponents])
        title = "largest mismatch" if name == "mismatch" else "what the student is surest of"
        axis.set(xlabel="alpha", ylabel="beta", title=f"share of the gradient on\n{title}")
    for number, (kind, gap) in enumerate(result.series["gaps"].items()):
        for part, style in ((0, "-"), (1, "--")):
            label = f"{kind.replace('_', ' ')}, {'head' if part == 0 else 'tail'}"
            axes[2].loglog(1 + np.arange(gap.shape[1]), gap[:, :, part].mean(0), style, color=f"C{number}", label=label)
    axes[2].set(xlabel="step", ylabel="sum |p - q|")
    axes[2].legend(fontsize=7)
    return figure
