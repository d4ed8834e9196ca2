"""Which modes of a teacher a student takes: KL, reverse KL, Jensen-Shannon and Sinkhorn on a line.

The teacher has two modes on a grid of 101 points, with masses 0.6 and 0.4. Students are one Gaussian, or a mixture of
two, cut off at the ends of the grid. Sinkhorn is the transport of a student's masses to the teacher's at the cost
|x - y| between points. A family with one mode can only average or choose; what transport changes shows where the family
can have both.

The released loss has no distance between points: its costs are |q - p|_1 between whole outputs, of a batch here in
which teacher and student are shifted together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.statistics import paired_differences
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="SinKD: Sinkhorn distance minimisation for knowledge distillation (arXiv 2402.17110)",
    source="mode figure",
    minutes={"smoke": 0.1, "cpu": 1},
)
MODES, MASSES, WIDTH = np.array([-2.0, 2.5]), np.array([0.6, 0.4]), 0.5
END, POINTS = 9.0, 101
STARTS = (-3.0, 0.0, 3.0)
SHIFTS = (0.0, 0.2, 0.4, 0.6)  # of the batch
FAR, NARROW = 7.0, 0.25  # mean, of either sign, and width of a student that overlaps with no mode
NO_MASS = -80.0  # logarithm of the mass of the second Gaussian of a student that has one
FORWARD, REVERSE, SHANNON, SINKHORN, RELEASED = OBJECTIVES = (
    "forward KL",
    "reverse KL",
    "Jensen-Shannon",
    "Sinkhorn",
    "released SinKD",
)


@dataclass(frozen=True)
class Config(results.Config):
    """The transport and the fits."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One start of the mixture each."""
    steps: int = 800
    """Of Adam."""
    rate: float = 0.05
    """Of its first step."""
    eps: float = 1.0
    """Strength of the entropy, in units of the line."""
    n_iters: int = 100
    """Sinkhorn iterations."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("steps", self.steps, 1)
        require("rate", self.rate, 1e-6)
        require("eps", self.eps, 1e-2)
        require("n_iters", self.n_iters, 1)


PRESETS = {"smoke": Config(seeds=(0,), steps=3, n_iters=5), "cpu": Config()}

CLAIMS = (
    Claim(
        "distillation/sinkd-modes-kl-averages",
        "distance of forward KL's student mean from the teacher's, the largest over three starts",
        "below",
        0.05,
        deterministic=True,
    ),
    Claim(
        "distillation/sinkd-modes-reverse-kl-collapses",
        "distance of reverse KL's student mean from the mode on the side of its start, the larger of starts -3 and 3",
        "below",
        0.1,
        deterministic=True,
    ),
    Claim(
        "distillation/sinkd-modes-js-underestimates",
        "gradient of Jensen-Shannon by the mean of a student without overlap, relative to its largest along the line",
        "below",
        1e-3,
        deterministic=True,
    ),
    Claim(
        "distillation/sinkd-modes-sinkhorn",
        "distance of Sinkhorn's student mean from the nearest mode, the largest over three starts",
        "below",
        0.5,
        deterministic=True,
    ),
    Claim(
        "distillation/sinkd-modes-one-basin",
        "largest difference of Sinkhorn's student means from three starts",
        "below",
        0.05,
        kind="ours",
        deterministic=True,
    ),
    Claim(
        "distillation/sinkd-modes-bounded-gradient",
        "size of Sinkhorn's gradient by the mean of a student without overlap, the mean of both sides",
        "within",
        1.0,
        0.1,
        kind="ours",
        deterministic=True,
    ),
    Claim(
        "distillation/sinkd-released-gradient-vanishes",
        "gradient of the released batch-wise loss by the mean of students without overlap, relative to its largest",
        "below",
        1e-3,
        kind="ours",
        deterministic=True,
    ),
    Claim(
        "distillation/sinkd-modes-two-components",
        "distance of the means of a mixture of two, trained by Sinkhorn from random starts, from the two modes, larger",
        "below",
        0.3,
        kind="ours",
    ),
    Claim(
        "distillation/sinkd-modes-two-components-reverse-kl",
        "that distance under reverse KL minus that under Sinkhorn, same starts",
        "above",
        0.0,
        kind="ours",
    ),
)


def grid() -> np.ndarray:
    """The points of the line.

    Example:
        >>> grid().shape
        (101,)
    """
    return np.linspace(-END, END, POINTS)


def mixture(x: Any, means: Any, log_widths: Any, log_masses: Any) -> jax.Array:
    """Logits of a mixture of Gaussians at the points.

    Args:
        x: (P,).
        means: (K,).
        log_widths: (K,).
        log_masses: (K,), up to a constant.

    Returns:
        (P,).

    Example:
        >>> logits = mixture(grid(), np.zeros(1), np.zeros(1), np.zeros(1))
        >>> bool(logits[50] > logits[20])
        True
    """
    import jax
    import jax.numpy as jnp

    squares = ((x[:, None] - means[None]) / jnp.exp(log_widths)[None]) ** 2
    return jax.nn.logsumexp(jax.nn.log_softmax(log_masses)[None] - log_widths[None] - squares / 2, axis=1)


def density(student: Any) -> np.ndarray:
    """Masses of a student on the grid.

    Example:
        >>> round(float(density(one(1.0)) @ grid()), 6)
        1.0
    """
    means, log_widths, log_masses = (np.asarray(part)[None] for part in student)
    terms = log_masses - log_widths - ((grid()[:, None] - means) / np.exp(log_widths)) ** 2 / 2
    masses = np.exp(terms - terms.max()).sum(1)
    return masses / masses.sum()


def teacher(shift: float = 0.0) -> np.ndarray:
    """Logits of the teacher, moved along the line."""
    return np.log(density((MODES + shift, np.full(2, np.log(WIDTH)), np.log(MASSES))))


def objective(config: Config, name: str) -> Callable[[Any], jax.Array]:
    """The loss of a student.

    Args:
        config: of the transport.
        name: one of OBJECTIVES.

    Returns:
        (means, log widths, log masses) -> scalar.
    """
    import jax.numpy as jnp

    import kd

    x = grid()
    if name == RELEASED:
        batch = jnp.stack([teacher(shift) for shift in SHIFTS])

        def released(student: Any) -> jax.Array:
            means, *rest = student
            s = jnp.stack([mixture(x, means + shift, *rest) for shift in SHIFTS])
            return kd.sinkd(s, batch, temperature=1.0) / len(SHIFTS)

        return released
    t = jnp.asarray(teacher())
    if name == SINKHORN:
        cost = np.abs(x[:, None] - x[None])
        args: dict[str, Any] = {"eps": config.eps, "n_iters": config.n_iters, "temperature": 1.0}
        return lambda student: kd.sinkd_sample_wise(floored(mixture(x, *student))[None], t[None], cost, **args)
    kind = {FORWARD: "forward_kl", REVERSE: "reverse_kl", SHANNON: "jsd"}[name]
    return lambda student: kd.token_divergence(kind, mixture(x, *student), t)


def floored(logits: jax.Array) -> jax.Array:
    """Logits with 1e-9 of the mass spread over all points: transport takes logarithms of the masses."""
    import jax
    import jax.numpy as jnp

    return jnp.logaddexp(jax.nn.log_softmax(logits), np.log(1e-9))


def run(config: Config, run_dir: Path) -> Result:
    """Fit one Gaussian from three starts and two from random ones, and follow the gradient along the line."""
    import jax

    with jax.enable_x64(True):
        starts = [*(one(start) for start in STARTS), *(two(seed) for seed in config.seeds)]
        positions = np.linspace(-FAR, FAR, 57)
        found = {name: followed(config, name, starts, positions) for name in OBJECTIVES}
    single, double = ({name: ends[part] for name, (ends, _) in found.items()} for part in (slice(3), slice(3, None)))
    slopes = {name: slope for name, (_, slope) in found.items()}
    means = {name: np.array([density(student) @ grid() for student in found]) for name, found in single.items()}
    away = {name: distances(found) for name, found in double.items()}
    table: dict[str, list] = {
        "objective": [name for name in OBJECTIVES for _ in STARTS],
        "start": list(STARTS) * len(OBJECTIVES),
        "mean": [float(mean) for name in OBJECTIVES for mean in means[name]],
        "width": [float(np.exp(student[1][0])) for name in OBJECTIVES for student in single[name]],
    }
    mixtures: dict[str, list] = {
        "objective": [name for name in double for _ in config.seeds],
        "seed": list(config.seeds) * len(double),
        "distance": [float(d) for name in double for d in away[name]],
        "mass": [float(left_mass(student)) for name in double for student in double[name]],
    }
    series = {
        "densities": {name: np.stack([density(student) for student in found]) for name, found in single.items()},
        "mixtures": {name: np.stack([density(student) for student in found]) for name, found in double.items()},
        "gradients": {"mean": positions, **slopes},
    }
    return Result(_measured(means, slopes, away), {"one Gaussian": table, "two Gaussians": mixtures}, series)


def _measured(means: dict[str, Any], slopes: dict[str, Any], away: dict[str, Any]) -> dict[str, Any]:
    nearest = np.abs(means[SINKHORN][:, None] - MODES[None]).min(1)
    without_overlap = {name: np.abs(slope[[0, -1]]).mean() for name, slope in slopes.items()}
    vanishing = {name: float(without_overlap[name] / np.abs(slopes[name]).max()) for name in (SHANNON, RELEASED)}
    sides = np.array([means[REVERSE][0] - MODES[0], means[REVERSE][-1] - MODES[1]])
    prefix = "distillation/sinkd-modes-"
    return {
        prefix + "kl-averages": [float(np.abs(means[FORWARD] - MASSES @ MODES).max())],
        prefix + "reverse-kl-collapses": [float(np.abs(sides).max())],
        prefix + "js-underestimates": [vanishing[SHANNON]],
        prefix + "sinkhorn": [float(nearest.max())],
        prefix + "one-basin": [float(np.ptp(means[SINKHORN]))],
        prefix + "bounded-gradient": [float(without_overlap[SINKHORN])],
        "distillation/sinkd-released-gradient-vanishes": [vanishing[RELEASED]],
        prefix + "two-components": away[SINKHORN].tolist(),
        prefix + "two-components-reverse-kl": paired_differences(away[REVERSE], away[SINKHORN]),
    }


def one(start: float) -> tuple[np.ndarray, ...]:
    """One Gaussian of width 1: the second has no mass, and gets no gradient.

    Example:
        >>> one(3.0)[0].tolist()
        [3.0, 3.0]
    """
    return np.full(2, start), np.zeros(2), np.array([0.0, NO_MASS])


def two(seed: int) -> tuple[np.ndarray, ...]:
    """Two Gaussians of width and mass 1 whose means are drawn between the outer starts."""
    return np.random.default_rng(seed).uniform(min(STARTS), max(STARTS), 2), np.zeros(2), np.zeros(2)


def followed(
    config: Config, name: str, starts: list[tuple[np.ndarray, ...]], positions: np.ndarray
) -> tuple[list[tuple[np.ndarray, ...]], np.ndarray]:
    """Students after Adam, one per start, and derivatives by the mean of one narrow Gaussian at the positions."""
    import jax
    import jax.numpy as jnp

    from experiments.distillation.descent import fitted

    loss = objective(config, name)

    def end(start: Any) -> Any:
        return fitted(lambda student, _: loss(student), start, steps=config.steps, rate=config.rate)[0]

    def slope(mean: Any) -> Any:
        narrow = np.log(NARROW) * np.ones(1), np.zeros(1)
        return jax.grad(lambda mean: loss((mean[None], *narrow)))(mean)

    def both(starts: Any, positions: Any) -> Any:
        return jax.lax.map(end, starts), jax.lax.map(slope, positions)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    ends, slopes = jax.tree.map(np.asarray, jax.jit(both)(stacked, positions))
    return [tuple(leaf[i] for leaf in ends) for i in range(len(starts))], slopes


def distances(students: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """How far the two means of each student, in their order, are from the two modes: the larger of the two.

    Example:
        >>> distances([(np.array([2.5, -1.5]), np.zeros(2), np.zeros(2))]).tolist()
        [0.5]
    """
    return np.array([np.abs(np.sort(student[0]) - MODES).max() for student in students])


def left_mass(student: tuple[np.ndarray, ...]) -> float:
    """Mass of the left one of two Gaussians."""
    masses = np.exp(student[2] - student[2].max())
    return float((masses / masses.sum())[np.argmin(student[0])])


def plot(result: StoredResult) -> Figure:
    """Students with one mode and with two, and gradients along the line."""
    from matplotlib import pyplot as plt

    x, series = grid(), result.series
    shape = np.exp(teacher())
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, name in ((axes[0], "densities"), (axes[1], "mixtures")):
        axis.fill_between(x, shape, color="0.85", label="teacher")
        for number, (objective, found) in enumerate(series[name].items()):
            for i, density in enumerate(found):
                axis.plot(x, density, color=f"C{number}", linewidth=1, label=objective if i == 0 else None)
        axis.set(xlabel="x", ylabel="mass")
        axis.legend(fontsize=7)
    axes[0].set_title("one Gaussian, three starts")
    axes[1].set_title("two Gaussians, random starts")
    for name in OBJECTIVES:
        slope = np.abs(series["gradients"][name])
        axes[2].semilogy(series["gradients"]["mean"], np.maximum(slope, 1e-12), linewidth=1, label=name)
    axes[2].set(xlabel="mean of a narrow student", ylabel="|gradient by the mean|", ylim=(1e-12, None))
    axes[2].legend(fontsize=7)
    return figure
