"""PLD over the student's logits: convexity along lines, beside KD and DIST, and its value at scaled teacher logits.

Along random lines s = t + a d and on a plane of two directions, |a| up to 5 times the norm of the teacher's logits, as
in the paper's figure. A function is convex along a line where no second difference is negative. Forward KL is convex
in the student's logits as well (a log-sum-exp minus something linear), DIST is not. Labels are the teacher's first
class: PLD at c t then goes to 0 as c grows, and the teacher itself is no stationary point.
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
    paper="PLD: Plackett-Luce distillation (arXiv 2506.12542)",
    source="loss-landscape figure",
    minutes={"smoke": 0.1, "cpu": 0.1},
)
PLD, KD, DIST = OBJECTIVES = ("PLD", "KD", "DIST")
SCALES = np.geomspace(0.1, 100, 31)  # 1, 10 and 100 are among them


@dataclass(frozen=True)
class Config(results.Config):
    """The batch and where its losses are computed."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One batch each."""
    batch: int = 16
    """Samples."""
    classes: int = 10
    """Of a sample."""
    spread: float = 2.0
    """Standard deviation of the teacher's logits."""
    lines: int = 50
    """Random directions."""
    points: int = 81
    """Of a line, and of each axis of the plane."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("batch", "classes"):
            require(name, getattr(self, name), 2)
        require("lines", self.lines, 1)
        require("points", self.points, 3)
        require("spread", self.spread, 1e-3)


PRESETS = {"smoke": Config(seeds=(0,), batch=3, classes=4, lines=2, points=5), "cpu": Config()}


def _claim(name: str, quantity: str, test: Any, expected: float, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/pld-{name}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "convex-landscape",
        "least second difference of PLD along random lines, relative to the largest, all lines",
        "above",
        -1e-9,
    ),
    _claim("convex-kd-too", "that of forward KL: convexity does not tell PLD from KD", "above", -1e-9, "ours"),
    _claim("dist-not-convex", "that of DIST's two terms", "below", -1e-3, "ours"),
    _claim("not-matching", "norm of PLD's gradient at s = t over that at s = 0", "above", 0.01, "ours"),
    _claim("scaled-to-zero", "PLD at 100 t over PLD at t, labels being the teacher's first", "below", 1e-3, "ours"),
)


@cache
def _programs() -> dict[str, Any]:
    """Objective -> compiled (points (..., B, C), t, y) -> losses (...,); and the gradient of PLD."""
    import jax

    import kd

    losses = {
        PLD: lambda s, t, y: kd.pld(s, t, y),
        KD: lambda s, t, y: kd.token_divergence("forward_kl", s, t).mean(),
        DIST: lambda s, t, y: kd.dist(s, t, y, ce_weight=0.0),
    }
    mapped = {name: jax.jit(jax.vmap(loss, (0, None, None))) for name, loss in losses.items()}
    return mapped | {"gradient": jax.jit(jax.grad(losses[PLD]))}


def teacher(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, C), and their first classes (B)."""
    t = config.spread * np.random.default_rng(seed).standard_normal((config.batch, config.classes))
    return t, t.argmax(1)


def directions(config: Config, seed: int, count: int) -> np.ndarray:
    """Random directions as long as the teacher's logits (count, B, C)."""
    t, _ = teacher(config, seed)
    drawn = np.random.default_rng([seed, 1]).standard_normal((count, *t.shape))
    return drawn * np.linalg.norm(t) / np.linalg.norm(drawn, axis=(1, 2), keepdims=True)


def second_differences(values: np.ndarray) -> float:
    """The least second difference along the last axis over the largest, over all rows.

    Example:
        >>> second_differences(np.array([[4.0, 1.0, 0.0, 1.0], [0.0, 0.0, -1.0, 0.0]]))
        -0.5
    """
    found = np.diff(values, 2, axis=-1)
    return float(found.min() / found.max())


def run(config: Config, run_dir: Path) -> Result:
    """Lines, scales and one plane for every batch."""
    import jax

    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    a = np.linspace(-5, 5, config.points)
    scaled = []
    table: dict[str, list] = {"seed": [], "objective": [], "least second difference": []}
    with jax.enable_x64(True):
        programs = _programs()
        for seed in config.seeds:
            t, y = teacher(config, seed)
            lines = t + a[:, None, None] * directions(config, seed, config.lines)[:, None]
            points = lines.reshape(-1, *t.shape)
            least = {}
            for name in OBJECTIVES:
                values = np.asarray(programs[name](points, t, y)).reshape(config.lines, config.points)
                least[name] = second_differences(values)
                for column, entry in zip(table.values(), (seed, name, least[name]), strict=True):
                    column.append(entry)
            curve = np.asarray(programs[PLD](SCALES[:, None, None] * t, t, y))
            slopes = [np.linalg.norm(programs["gradient"](s, t, y)) for s in (t, 0 * t)]
            scaled.append(curve)
            at_teacher = curve[np.abs(SCALES - 1).argmin()]
            numbers = (*least.values(), slopes[0] / slopes[1], curve[-1] / at_teacher)
            for claim, number in zip(CLAIMS, numbers, strict=True):
                measured[claim.id].append(float(number))
        series = {"scaled": {"scale": SCALES, "loss": np.stack(scaled)}, "plane": plane(config, programs, a)}
    return Result(measured, {"lines": table}, series)


def plane(config: Config, programs: dict[str, Any], a: np.ndarray) -> dict[str, np.ndarray]:
    """Losses of the first batch on t + a d_1 + b d_2."""
    seed = config.seeds[0]
    t, y = teacher(config, seed)
    first, second = directions(config, seed, 2)
    points = t + a[:, None, None, None] * first + a[None, :, None, None] * second
    flat = points.reshape(-1, *t.shape)
    return {name: np.asarray(programs[name](flat, t, y)).reshape(len(a), len(a)) for name in OBJECTIVES}


def plot(result: StoredResult) -> Figure:
    """The plane of each objective, and PLD at scaled teacher logits."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    for axis, name in zip(axes, OBJECTIVES, strict=False):
        values = result.series["plane"][name]
        image = axis.contourf(*(np.linspace(-5, 5, len(values)),) * 2, values.T, levels=20)
        figure.colorbar(image, ax=axis)
        axis.set(title=name, xlabel="a", ylabel="b")
    axes[3].loglog(result.series["scaled"]["scale"], np.maximum(result.series["scaled"]["loss"].T, 1e-16), linewidth=1)
    axes[3].axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes[3].set(xlabel="c", ylabel="PLD at s = c t")
    return figure
