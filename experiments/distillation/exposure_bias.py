"""Exposure bias position by position: what a student's error is on the teacher's sequences and on its own.

Forward KL per token, exactly (`chains.py`), on the teacher's sequences, on the student's own, on both in equal parts,
and on its own with the gradient of what it visits. Two students with less capacity than the teacher of order 2: one
sees the last symbol only, the other adds what each of the last two symbols says. What grows with the position on own
sequences and not on the teacher's is exposure bias.
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
    paper="GKD, on-policy distillation (arXiv 2306.13649)",
    source="its motivation, where everything can be computed",
    minutes={"smoke": 0.05, "cpu": 0.1},
)
LAST, BOTH = STUDENTS = ("last symbol", "both symbols")
GIVEN, MIXED, OWN, WHOLE = TRAININGS = ("teacher's sequences", "half and half", "own sequences", "whole gradient")
FRACTIONS = (0.0, 0.5, 1.0, 1.0)


@dataclass(frozen=True)
class Config(results.Config):
    """The teachers and the fits."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One teacher each."""
    symbols: int = 6
    """Of a teacher."""
    concentration: float = 0.15
    """Of the Dirichlet law of its rows."""
    length: int = 16
    """Of the sequences."""
    steps: int = 1500
    """Of Adam."""
    rate: float = 0.1
    """Of its first step; it falls to 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("symbols", self.symbols, 2)
        require("concentration", self.concentration, 0.05)
        require("length", self.length, 2)
        require("steps", self.steps, 1)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), symbols=3, length=4, steps=3), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, kind: Any = "ours") -> Claim:
    return Claim(f"distillation/{id}", quantity, test, 0.0, kind=kind)


CLAIMS = (
    _claim(
        "exposure-bias-teacher-forced",
        "KL(p, q) at the last position, on own sequences minus on the teacher's, nats; trained on the teacher's, "
        "student of both symbols",
        "above",
        "paper",
    ),
    _claim(
        "exposure-bias-teacher-forced-last-symbol",
        "the same of the student of the last symbol",
        "above",
    ),
    _claim(
        "gkd-exposure-bias",
        "growth of KL(p, q) on own sequences from the first to the last position, trained on own sequences minus on "
        "the teacher's, nats; student of both symbols",
        "below",
        "paper",
    ),
    _claim(
        "gkd-exposure-bias-last-symbol",
        "the same of the student of the last symbol",
        "below",
    ),
    _claim(
        "exposure-bias-whole-gradient",
        "KL(p, q) at the last position of own sequences, whole gradient minus own sequences as given, nats; student of "
        "both symbols",
        "below",
    ),
    _claim(
        "exposure-bias-price",
        "KL(p, q) on the teacher's sequences, all positions, trained on own sequences minus on the teacher's, nats; "
        "student of both symbols",
        "above",
        "control",
    ),
)


@cache
def _program(config: Config) -> Any:
    """Teachers -> for each student, KL(p, q) by position on given and own sequences, 2 x (trainings, seeds, T)."""
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.chains import by_both, by_context, gkd_student, positions

    args: dict[str, Any] = {"length": config.length, "steps": config.steps, "rate": config.rate}
    whole = jnp.array([float(name == WHOLE) for name in TRAININGS])

    def divergence(s: Any, t: Any) -> Any:
        return kd.token_divergence("forward_kl", s, t)

    def program(teachers: Any) -> Any:
        found = {}
        for name, student, tables in ((LAST, by_context, 1), (BOTH, by_both, 2)):

            def fit(teacher: Any, fraction: Any, through: Any, student: Any = student, tables: int = tables) -> Any:
                s = gkd_student(teacher, divergence, fraction, through, student=student, tables=tables, **args)
                return positions(s, teacher, config.length)[:2]

            columns = jnp.array(FRACTIONS), whole
            found[name] = jax.vmap(jax.vmap(fit, (0, None, None)), (None, 0, 0))(teachers, *columns)
        return found

    return jax.jit(program)


def run(config: Config, run_dir: Path) -> Result:
    """Fit both students in four ways to every teacher, in float64."""
    import jax

    from experiments.distillation.chains import dirichlet_teacher, stacked

    teachers = stacked([dirichlet_teacher(seed, config.symbols, config.concentration) for seed in config.seeds])
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, _program(config)(teachers))
    columns = ("student", "trained on", "seed", "given, first", "given, last", "own, first", "own, last")
    table: dict[str, list] = {name: [] for name in columns}
    for student, (given, own) in found.items():
        for place, training in enumerate(TRAININGS):
            for seed, *each in zip(config.seeds, given[place], own[place], strict=True):
                ends = [float(curve[end]) for curve in each for end in (0, -1)]
                for column, entry in zip(table.values(), (student, training, seed, *ends), strict=True):
                    column.append(entry)
    both, last = (
        {name: (found[who][0][i], found[who][1][i]) for i, name in enumerate(TRAININGS)} for who in (BOTH, LAST)
    )
    measured = compared(both)
    measured |= {f"{id}-last-symbol": values for id, values in compared(last).items()}
    wanted = {claim.id: measured[claim.id.partition("/")[2]].tolist() for claim in CLAIMS}
    series = {student: {"given": given, "own": own} for student, (given, own) in found.items()}
    return Result(wanted, {"ends": table}, series)


def compared(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed.

    Args:
        curves: training -> KL(p, q) on given and on own sequences, each (seeds, T).

    Returns:
        Claim, without its folder -> (seeds).

    Example:
        >>> curve, flat = np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]])
        >>> found = compared({name: (flat, flat if name == OWN else curve) for name in TRAININGS})
        >>> found["exposure-bias-teacher-forced"].tolist(), found["gkd-exposure-bias"].tolist()
        ([2.0], [-2.0])
    """
    given, own = curves[GIVEN], curves[OWN]
    growth = [each[1][:, -1] - each[1][:, 0] for each in (own, given)]
    return {
        "exposure-bias-teacher-forced": given[1][:, -1] - given[0][:, -1],
        "gkd-exposure-bias": growth[0] - growth[1],
        "exposure-bias-whole-gradient": curves[WHOLE][1][:, -1] - own[1][:, -1],
        "exposure-bias-price": (own[0] - given[0]).sum(1),
    }


def plot(result: StoredResult) -> Figure:
    """KL(p, q) by position, own sequences solid and the teacher's dashed, one panel per student."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, student in zip(axes, STUDENTS, strict=True):
        for field, style in (("own", "-"), ("given", "--")):
            for number, training in enumerate(TRAININGS):
                mean = result.series[student][field][number].mean(0)
                label = training if field == "own" else None
                axis.plot(1 + np.arange(len(mean)), mean, style, color=f"C{number}", markersize=3, label=label)
        axis.set(xlabel="position", ylabel="KL(p, q), nats", title=f"student of {student.replace('last', 'the last')}")
    axes[0].legend(fontsize=7, title="trained on; solid: own, dashed: teacher's sequences", title_fontsize=7)
    return figure
