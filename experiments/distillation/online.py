"""BD-KD online: teacher and student trained together from the start, on the same few images; accuracy and calibration.

BD-KD weights the two Kullback-Leibler divergences of a student sample by sample, by which of the networks is more
certain, and its teacher learns too. Both networks begin from initial values and see the 100 images of the student.
Beside it stand, on the same images: cross-entropy, Hinton's loss with a teacher trained on these images before, and
deep mutual learning. Each has the temperature of the grid with which students of other seeds are right most often
on images that nobody learns from. The two weights of BD-KD are scaled to sum to 2 whatever delta is; with delta 1 it is
the symmetric divergence. The paper's weights of its losses and its code were not at hand (`kd.classification.bd_kd`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.distillation.digits import DigitsConfig, FitConfig, tuning_seeds
from experiments.distillation.objectives import OBJECTIVES, Objective, balanced_both
from experiments.distillation.tables import CELLS, cell_columns, difference, draw_cells, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="BD-KD (arXiv 2212.12965)",
    source="main tables and delta, on digits (ours)",
    minutes={"smoke": 0.2, "cpu": 3},
)
MEASURES = (*CELLS, "teacher accuracy", "teacher calibration error")
OTHERS = ("ce", "hinton", "mutual")


@dataclass(frozen=True)
class Config(DigitsConfig):
    """The deltas and the grid."""

    teacher: str = "mlp-64-64"
    """Kind and widths of the teacher, which learns from the 100 images only, once for every student."""
    deltas: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    """How much more the chosen divergence weighs; 3 is what the claims are about, against 1."""
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """What is chosen from."""
    tuned_with: int = 10
    """Further seeds, with whose students temperatures are chosen."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("tuned_with", self.tuned_with, 1)
        if not {1.0, 3.0} <= set(self.deltas) or min(self.deltas) <= 0:
            raise ValueError(f"deltas: got {self.deltas}, expected 1 and 3 among them, all above 0")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperatures: got {self.temperatures}, expected at least one, all above 0")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teacher="mlp-8",
        deltas=(1.0, 3.0),
        temperatures=(4.0,),
        tuned_with=1,
        teacher_fit=FitConfig(steps=3),
        fit=FitConfig(steps=3),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/bdkd-better-accuracy",
        "test accuracy of BD-KD's student, delta 3, minus the best of cross-entropy, Hinton's loss and mutual "
        "learning, percentage points",
        "above",
        0.0,
    ),
    Claim(
        "distillation/bdkd-better-calibration",
        "smallest calibration error of students of cross-entropy, Hinton's loss and mutual learning minus that of "
        "BD-KD's, delta 3",
        "above",
        0.0,
    ),
    Claim(
        "distillation/bdkd-delta-sweep",
        "test accuracy of BD-KD's student with delta 3 minus with delta 1, percentage points",
        "above",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train all students, choose their temperatures, and measure them."""
    from experiments.distillation.digits import digit_parts, transfer_rows
    from experiments.distillation.networks import network
    from experiments.distillation.students import Students
    from experiments.distillation.teachers import train_teachers
    from experiments.runs import record_data

    parts, seeds = digit_parts(), (*tuning_seeds(config.tuned_with), *config.seeds)
    data = {"digits": parts.sha256}
    record_data(run_dir, data)
    rows = tuple(transfer_rows(parts.train.labels, config.images, seed) for seed in seeds)
    students = Students(config.student, parts, seeds, rows, config.fit, config.at_once)
    fit = config.teacher_fit
    before = train_teachers(config.teacher, parts, seeds, fit, rows=rows, at_once=config.at_once)
    found = {}
    chosen = {}
    for name, one in objectives(config).items():
        grid = config.temperatures if one.tempered else (1.0,)
        if one.joint:
            measured = students.online(one, network(config.teacher), grid)
        else:
            measured = students.distil(one, before, grid)
        place = int(np.argmax(measured["validation"]["accuracy"][:, : config.tuned_with].mean(axis=1)))
        chosen[name] = grid[place] if one.tempered else ""
        found[name] = {cell: values[place, config.tuned_with :] for cell, values in measured["test"].items()}
    cells = cell_columns(found, MEASURES) | {"temperature": list(chosen.values())}
    tables = {"cells": cells, "seeds": seed_columns(found, config.seeds, MEASURES)}
    return Result(measured=_measured(found), tables=tables, data=data)


def objectives(config: Config) -> dict[str, Objective]:
    """What is compared, by name.

    Args:
        config: the deltas.

    Returns:
        Name -> objective.

    Example:
        >>> list(objectives(PRESETS["smoke"]))
        ['ce', 'hinton', 'mutual', 'BD-KD, delta 1', 'BD-KD, delta 3']
    """
    balanced = {
        f"BD-KD, delta {delta:g}": Objective(partial(balanced_both, delta=delta), "BD-KD", joint=True)
        for delta in config.deltas
    }
    return {**{name: OBJECTIVES[name] for name in OTHERS}, **balanced}


def _measured(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ours, plain = found["BD-KD, delta 3"], found["BD-KD, delta 1"]
    others = [found[name] for name in OTHERS]
    error = np.min([each["calibration error"] for each in others], axis=0) - ours["calibration error"]
    return {
        "distillation/bdkd-better-accuracy": difference(ours["accuracy"], *(each["accuracy"] for each in others)),
        "distillation/bdkd-better-calibration": error,
        "distillation/bdkd-delta-sweep": difference(ours["accuracy"], plain["accuracy"]),
    }


def plot(result: StoredResult) -> Figure:
    """Accuracy and calibration error of each student, mean and 95 % interval."""
    from matplotlib import pyplot as plt

    cells = result.tables["cells"]
    names = [f"{n}, T {t:g}" if t != "" else n for n, t in zip(cells["student"], cells["temperature"], strict=True)]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.8 + 0.3 * len(names)), layout="constrained")
    for axis, measure in zip(axes, ("accuracy", "calibration error"), strict=True):
        draw_cells(axis, cells, measure, names)
    axes[0].set(xlabel="test accuracy, %")
    axes[1].set(xlabel="expected calibration error")
    return figure
