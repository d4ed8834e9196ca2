"""Students of teachers that grow: does a much stronger teacher teach worse?

Teachers of two hidden layers of equal width, from the student's 16 to 1024 units, each trained on the labels of 800
images; students of Hinton's loss, DIST and an AB-divergence at one temperature. That distillation suffers from a gap in
capacity, and that DIST and AB suffer less, is read off the difference between the widest teacher and one of 64 units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.distillation.digits import DigitsConfig, FitConfig
from experiments.distillation.objectives import OBJECTIVES
from experiments.distillation.tables import cell_columns, difference, draw_curve, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Hinton et al., knowledge distillation; DIST (arXiv 2205.10536); ABKD",
    source="the capacity gap, on digits (ours)",
    minutes={"smoke": 0.2, "cpu": 4},
)
LOSSES = ("hinton", "dist", "ab")


@dataclass(frozen=True)
class Config(DigitsConfig):
    """The teachers and the temperature."""

    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    """Of both hidden layers of a teacher; the claims compare the last with `base`."""
    losses: tuple[str, ...] = LOSSES
    """Objectives of the students, Hinton's among them."""
    base: int = 64
    """A teacher that is larger than the student, but not much."""
    temperature: float = 8.0
    """Of all losses."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.base not in self.widths[:-1]:
            raise ValueError(f"base: got {self.base}, expected one of the widths before the last, {self.widths[:-1]}")
        if not {"hinton"} <= set(self.losses) <= set(LOSSES):
            raise ValueError(f"losses: got {self.losses}, expected hinton and any of {', '.join(LOSSES[1:])}")
        for width in self.widths:
            require("widths", width, 1)
        if self.temperature <= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected above 0")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        widths=(4, 8),
        losses=("hinton",),
        base=4,
        teacher_fit=FitConfig(steps=3),
        fit=FitConfig(steps=3),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/capacity-gap",
        "test accuracy of students of Hinton's loss with the widest teacher minus with one of 64 units, percentage "
        "points",
        "below",
        0.0,
    ),
    Claim(
        "distillation/capacity-gap-less",
        "the same difference of DIST or AB, the smaller one, minus that of Hinton's loss, percentage points",
        "above",
        0.0,
    ),
    Claim(
        "distillation/capacity-gap-teachers",
        "test accuracy of the widest teacher minus that of the one of 64 units, percentage points",
        "above",
        0.0,
        kind="control",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train teachers of every width and the students of each."""
    from experiments.distillation.digits import digit_parts
    from experiments.distillation.students import prepared
    from experiments.runs import record_data

    data = {"digits": digit_parts().sha256}
    record_data(run_dir, data)
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for width in config.widths:
        teachers, students = prepared(replace(config, teacher=f"mlp-{width}-{width}"))
        variants = {name: (OBJECTIVES[name], config.temperature) for name in config.losses}
        for name, each in students.compare(variants, teachers).items():
            found[(name, width)] = each
        found[("teacher", width)] = {"accuracy": each["teacher accuracy"], "entropy": each["teacher entropy"]}
    named = {f"{name}, {width}": each for (name, width), each in found.items()}
    measures = ["accuracy", "entropy"]
    tables = {"cells": cell_columns(named, measures), "seeds": seed_columns(named, config.seeds, measures)}
    return Result(measured=_measured(config, found), tables=tables, data=data)


def _measured(config: Config, found: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    def grown(name: str) -> np.ndarray:
        return difference(*(found[(name, width)]["accuracy"] for width in (config.widths[-1], config.base)))

    measured = {
        "distillation/capacity-gap": grown("hinton"),
        "distillation/capacity-gap-teachers": grown("teacher"),
    }
    if set(config.losses) == set(LOSSES):
        measured["distillation/capacity-gap-less"] = np.minimum(grown("dist"), grown("ab")) - grown("hinton")
    return measured


def plot(result: StoredResult) -> Figure:
    """Accuracy of the students, and of the teachers, against the width of the teachers."""
    from matplotlib import pyplot as plt

    widths, seeds = result.config["widths"], len(result.seeds)
    table, names = result.tables["seeds"], (*result.config["losses"], "teacher")
    accuracy = dict(zip(table["student"][::seeds], np.array(table["accuracy"]).reshape(-1, seeds), strict=True))
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for name in names:
        draw_curve(axis, widths, [accuracy[f"{name}, {width}"] for width in widths], name)
    axis.set(xscale="log", xlabel="width of the teacher", ylabel="test accuracy, %")
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure
