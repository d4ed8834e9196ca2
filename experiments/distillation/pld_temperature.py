"""The temperature of Plackett-Luce distillation, against the gaps between the teacher's logits.

The weights of PLD are the teacher's softmax at a temperature: far below the gap between its two largest logits all
weight is on the label and PLD is the cross-entropy, far above it every place counts alike and PLD is ListMLE. Between
them the paper finds an inverted U with the peak at temperature 1 on ImageNet. Which temperature that is must depend on
the teacher, since its logits and the temperature enter as their quotient only. The rule tried here is ours: two thirds
of the mean gap between the two largest logits, which a trial with another teacher suggested; it is put to the test with
teachers that are trained for different times.

Position-aware ListMLE has fixed weights, 2^(C - k) at place k, scaled to sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.distillation.digits import DigitsConfig, FitConfig, tuning_seeds
from experiments.distillation.objectives import OBJECTIVES, Objective
from experiments.distillation.tables import cell_columns, difference, draw_curve, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from experiments.distillation.networks import Outputs

ABOUT = About(
    paper="PLD (arXiv 2506.12542)",
    source="temperature ablation, on digits (ours)",
    minutes={"smoke": 0.2, "cpu": 3},
)
RULE = 2 / 3


@dataclass(frozen=True)
class Config(DigitsConfig):
    """The temperatures and the teachers."""

    temperatures: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Ascending."""
    teacher_steps: tuple[int, ...] = (250, 1000, 4000)
    """Updates of the teachers that the rule is tried with."""
    tuned_with: int = 10
    """Further seeds, with whose students the best temperature is chosen."""
    teacher_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=1000, learning_rate=1e-3))
    """Training of the teacher of the curve; its updates are one of `teacher_steps`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("tuned_with", self.tuned_with, 1)
        if len(self.temperatures) < 3 or list(self.temperatures) != sorted(set(self.temperatures)):
            raise ValueError(f"temperatures: got {self.temperatures}, expected at least three, ascending")
        require("temperatures", self.temperatures[0], 1e-6)
        if self.teacher_fit.steps not in self.teacher_steps:
            raise ValueError(f"teacher_steps: got {self.teacher_steps}, expected {self.teacher_fit.steps} among them")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teacher="mlp-8",
        temperatures=(1.0, 2.0, 4.0),
        teacher_steps=(3,),
        tuned_with=1,
        teacher_fit=FitConfig(steps=3),
        fit=FitConfig(steps=3),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/pld-temperature-inverted-u",
        "test accuracy at the chosen temperature minus the larger of those at the two ends of the grid, percentage "
        "points",
        "above",
        0.0,
    ),
    Claim(
        "distillation/pld-above-listmle",
        "test accuracy of PLD at the chosen temperature minus the better of ListMLE and position-aware ListMLE, "
        "percentage points",
        "above",
        0.0,
    ),
    Claim(
        "distillation/pld-temperature-rule",
        "test accuracy at the temperature chosen from the grid minus that at two thirds of the teacher's mean gap, "
        "largest over the teachers, percentage points",
        "below",
        0.5,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train students at every temperature with each teacher, and at the temperature of the rule."""
    from experiments.distillation.digits import digit_parts
    from experiments.distillation.students import prepared
    from experiments.runs import record_data

    data = {"digits": digit_parts().sha256}
    record_data(run_dir, data)
    seeds, first = (*tuning_seeds(config.tuned_with), *config.seeds), config.tuned_with
    rows: dict[str, list] = {"teacher updates": [], "gap": [], "rule": [], "chosen": []}
    curves: dict[str, np.ndarray] = {}
    behind = []
    for steps in config.teacher_steps:
        teachers, students = prepared(replace(config, teacher_fit=replace(config.teacher_fit, steps=steps)), seeds)
        gap = mean_gap(np.asarray(teachers.train.logits[:first]))
        found = students.distil(OBJECTIVES["pld"], teachers, (*config.temperatures, RULE * gap))
        place = int(np.argmax(found["validation"]["accuracy"][:-1, :first].mean(axis=1)))
        accuracy = found["test"]["accuracy"][:, first:]
        curves[f"{steps}"] = accuracy
        behind.append(accuracy[place] - accuracy[-1])
        for column, entry in zip(rows.values(), (steps, gap, RULE * gap, config.temperatures[place]), strict=True):
            column.append(entry)
        if steps == config.teacher_fit.steps:
            lists = {"ce": OBJECTIVES["ce"], "list_mle": OBJECTIVES["list_mle"], "position-aware": POSITION_AWARE}
            others = students.compare({name: (one, 1.0) for name, one in lists.items()}, teachers)
            at = {name: {cell: values[first:] for cell, values in each.items()} for name, each in others.items()}
            at["pld"] = {cell: values[place, first:] for cell, values in found["test"].items()}
    of_curve = curves[f"{config.teacher_fit.steps}"]
    measured = {
        "distillation/pld-temperature-inverted-u": difference(at["pld"]["accuracy"], of_curve[0], of_curve[-2]),
        "distillation/pld-above-listmle": difference(
            at["pld"]["accuracy"], at["list_mle"]["accuracy"], at["position-aware"]["accuracy"]
        ),
        "distillation/pld-temperature-rule": np.max(behind, axis=0),
    }
    tables = {"teachers": rows, "cells": cell_columns(at), "seeds": seed_columns(at, config.seeds)}
    return Result(measured=measured, tables=tables, series={"accuracy": curves}, data=data)


def mean_gap(logits: np.ndarray) -> float:
    """Mean of the difference between the two largest logits.

    Args:
        logits: (..., classes).

    Returns:
        One number.

    Example:
        >>> mean_gap(np.array([[1.0, 4.0, 2.0], [0.0, 1.0, 5.0]]))
        3.0
    """
    two = np.sort(logits, axis=-1)[..., -2:]
    return float((two[..., 1] - two[..., 0]).mean())


def position_aware(s: Outputs, t: Outputs, y: jax.Array, temperature: Any) -> jax.Array:
    """ListMLE in the order of the label and then the teacher, with the weight 2^(C - k) at place k."""
    import jax
    import jax.numpy as jnp

    import kd

    classes = t.logits.shape[1]
    first = jnp.where(jax.nn.one_hot(y, classes) > 0, jnp.inf, t.logits)
    place = jnp.argsort(jnp.argsort(-first, axis=1), axis=1)
    return kd.pld(s.logits, -place.astype(jnp.float32) * jnp.log(2.0), y)


POSITION_AWARE = Objective(position_aware, "Plackett-Luce, weights 2^(C - k)", tempered=False)


def plot(result: StoredResult) -> Figure:
    """Left: accuracy against the temperature, with both limits. Right: all teachers, in units of their gaps."""
    from matplotlib import pyplot as plt

    temperatures, teachers = np.array(result.config["temperatures"]), result.tables["teachers"]
    cells, accuracy = result.tables["cells"], result.series["accuracy"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    of_curve = accuracy[f"{result.config['teacher_fit']['steps']}"]
    draw_curve(axes[0], temperatures, of_curve[:-1], "PLD")
    for number, (name, middle) in enumerate(zip(cells["student"], cells["accuracy"], strict=True)):
        if name != "pld":
            axes[0].axhline(middle, linestyle="--", color=f"C{number + 1}", linewidth=1, label=name)
    for steps, gap in zip(teachers["teacher updates"], teachers["gap"], strict=True):
        label = f"{steps} updates, gap {gap:.1f}"
        draw_curve(axes[1], temperatures / gap, accuracy[f"{steps}"][:-1], label)
    axes[1].axvline(RULE, color="black", linestyle=":", linewidth=1)
    axes[0].set(xscale="log", xlabel="temperature", ylabel="test accuracy, %")
    axes[0].set_xticks(temperatures, [f"{temperature:g}" for temperature in temperatures])
    axes[0].minorticks_off()
    axes[1].set(xscale="log", xlabel="temperature over the mean gap", ylabel="test accuracy, %")
    for axis in axes:
        axis.legend(fontsize=7)
    return figure
