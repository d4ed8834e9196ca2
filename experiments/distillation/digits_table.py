"""Objectives of distillation on digits: one teacher, one student, 100 images, a temperature chosen for each objective.

Teachers are trained on the labels of 800 images, students on 100 of these; each seed has a teacher, images, an order
and initial values, which all objectives share, so that differences are paired. For each objective that has a
temperature, the one of `temperatures` is taken with which students of other seeds, never reported, are right most often
on 278 images that nobody is trained or tested on; the grid is the same for all. Nothing else is tuned for anybody:
weights are those of the papers or of their code (`experiments.distillation.objectives`), rate and updates are one
recipe. This is a table of how the objectives do under that recipe, not a ranking.

MCMI's teacher is the same one fine-tuned; its students have Hinton's loss. Attention transfer is not here: a perceptron
has no places to attend to. BD-KD's teacher does not learn here; `distillation/online` has both networks trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.distillation.digits import DigitsConfig, FitConfig, tuning_seeds
from experiments.distillation.objectives import OBJECTIVES, objective
from experiments.distillation.tables import CELLS, cell_columns, difference, draw_cells, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.distillation.students import Students
    from experiments.distillation.teachers import Teachers

ABOUT = About(
    paper="KD, DKD, DIST, SinKD, BD-KD, PLD, MCMI, ABKD",
    source="an analogue of their main tables, on digits (ours)",
    minutes={"smoke": 0.2, "cpu": 3, "gpu": 10},
)
FROZEN = tuple(name for name, each in OBJECTIVES.items() if not each.joint)


@dataclass(frozen=True)
class Config(DigitsConfig):
    """The objectives and the grid."""

    objectives: tuple[str, ...] = FROZEN
    """Names in `experiments.distillation.objectives`."""
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """What is chosen from, the same for all objectives that have a temperature."""
    tuned_with: int = 10
    """Further seeds, with whose students temperatures are chosen."""
    mcmi_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=200, learning_rate=5e-4))
    """Fine-tuning of MCMI's teacher, at half the rate."""
    mcmi_weight: float = 0.2
    """Of its conditional mutual information."""

    def __post_init__(self) -> None:
        """Check the names and ranges."""
        super().__post_init__()
        require("tuned_with", self.tuned_with, 1)
        require("mcmi_weight", self.mcmi_weight, 0)
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperatures: got {self.temperatures}, expected at least one, all above 0")
        for name in self.objectives:
            if objective(name, "objectives").joint:
                raise ValueError(f"objectives: got {name!r}, expected one with a teacher that stays as it is")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teacher="mlp-8",
        objectives=("ce", "hinton"),
        temperatures=(4.0,),
        tuned_with=1,
        teacher_fit=FitConfig(steps=4),
        fit=FitConfig(steps=4),
    ),
    "cpu": Config(),
    # 300 students of each objective, 60 at once: five times 4000 updates of about 0.5 ms, which is what starting their
    # operations takes, are 10 s for each of 23 objectives, and twice that with SinKD's iterations; the rest compiles.
    "gpu": Config(
        seeds=tuple(range(30)),
        teacher="mlp-1024-1024",
        student="mlp-64-64",
        tuned_with=30,
        at_once=60,
        fit=FitConfig(steps=4000),
    ),
}


def _points(id: str, what: str, test: Any = "above", kind: Any = "ours", tolerance: float = 0.0) -> Claim:
    return Claim(f"distillation/{id}", f"test accuracy: {what}, percentage points", test, 0.0, tolerance, kind=kind)


CLAIMS = (
    _points("hinton-kd-beats-ce", "Hinton's loss minus cross-entropy", kind="paper"),
    _points("kd-beyond-smoothing", "Hinton's loss minus cross-entropy of smoothed labels", kind="control"),
    _points("dkd-digits", "smaller of DKD minus Hinton's loss and Hinton's loss minus cross-entropy"),
    _points("dist-digits", "DIST minus Hinton's loss", "below"),
    _points("sinkd-digits", "Hinton's loss with transport minus without", "within", tolerance=0.5),
    _points("pld-digits", "PLD minus the best of cross-entropy, Hinton's loss and DIST"),
    _points("mcmi-digits", "Hinton's loss with MCMI's teacher minus with the teacher as it was"),
)


def run(config: Config, run_dir: Path) -> Result:
    """Choose temperatures with some seeds, and measure students of the others at all of them."""
    from experiments.distillation.digits import digit_parts
    from experiments.runs import record_data

    data = {"digits": digit_parts().sha256}
    record_data(run_dir, data)
    seeds = (*tuning_seeds(config.tuned_with), *config.seeds)
    teachers, students = _cohort(config, seeds)
    chosen: dict[str, int] = {}
    found: dict[str, Any] = {}
    for name in config.objectives:
        grid = config.temperatures if OBJECTIVES[name].tempered else (1.0,)
        measured = students.distil(OBJECTIVES[name], teachers[OBJECTIVES[name].teacher], grid)
        tried = measured["validation"]["accuracy"][:, : config.tuned_with]
        chosen[name] = int(np.argmax(tried.mean(axis=1)))
        found[name] = {cell: values[:, config.tuned_with :] for cell, values in measured["test"].items()}
    best = {name: {cell: each[cell][chosen[name]] for cell in each} for name, each in found.items()}
    tables = {"cells": _cells(config, best, chosen), "seeds": seed_columns(best, config.seeds)}
    series = {name: {"accuracy": each["accuracy"], "chosen": np.array(chosen[name])} for name, each in found.items()}
    series["grid"] = {"temperature": np.array(config.temperatures)}
    at = {name: each["accuracy"] for name, each in best.items()}
    return Result(measured=_measured(at), tables=tables, series=series, data=data)


def _cohort(config: Config, seeds: tuple[int, ...]) -> tuple[dict[str, Teachers], Students]:
    """Both teachers of every seed, and its students."""
    from experiments.distillation.students import prepared
    from experiments.distillation.teachers import mcmi_teachers

    teachers, students = prepared(config, seeds)
    named = {"cross-entropy": teachers}
    if any(OBJECTIVES[name].teacher == "mcmi" for name in config.objectives):
        named["mcmi"] = mcmi_teachers(
            teachers, students.parts, seeds, config.mcmi_fit, weight=config.mcmi_weight, at_once=config.at_once
        )
    return named, students


def _cells(config: Config, best: Mapping[str, Any], chosen: Mapping[str, int]) -> dict[str, list]:
    """A row for each objective, and one for each teacher: every measure with its interval."""
    found = dict(best)
    for kind in dict.fromkeys(OBJECTIVES[name].teacher for name in best):
        taught = next(each for name, each in best.items() if OBJECTIVES[name].teacher == kind)
        own = {cell: taught[f"teacher {cell}"] for cell in CELLS if cell != "agreement"}
        found[f"the teacher ({kind})"] = own | {"agreement": np.full(len(config.seeds), 100.0)}
    there = [name for name in best if OBJECTIVES[name].tempered]
    temperatures = {name: config.temperatures[chosen[name]] for name in there}
    return cell_columns(found) | {"temperature": [temperatures.get(name, "") for name in found]}


def _measured(at: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One value per claim and seed, of those claims whose objectives are there."""

    pairs: dict[str, tuple[str, ...]] = {
        "hinton-kd-beats-ce": ("hinton", "ce"),
        "kd-beyond-smoothing": ("hinton", "smoothed"),
        "dist-digits": ("dist", "hinton"),
        "sinkd-digits": ("sinkd", "hinton"),
        "pld-digits": ("pld", "ce", "hinton", "dist"),
        "mcmi-digits": ("mcmi", "hinton"),
    }
    found: dict[str, Any] = {
        id: difference(*(at[name] for name in names)) for id, names in pairs.items() if set(names) <= set(at)
    }
    if {"dkd", "hinton", "ce"} <= set(at):
        found["dkd-digits"] = np.minimum(*(difference(at[a], at[b]) for a, b in (("dkd", "hinton"), ("hinton", "ce"))))
    return {f"distillation/{id}": values for id, values in found.items()}


def plot(result: StoredResult) -> Figure:
    """Left: accuracy of each objective, mean and 95 % interval. Right: accuracy against the temperature."""
    from matplotlib import pyplot as plt

    cells = result.tables["cells"]
    names = cells["student"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.8 + 0.22 * len(names)), layout="constrained")
    labels = [f"{name}, T {t:g}" if t != "" else name for name, t in zip(names, cells["temperature"], strict=True)]
    draw_cells(axes[0], cells, "accuracy", labels)
    axes[0].set(xlabel="test accuracy, %")
    temperatures = result.series["grid"]["temperature"]
    for number, name in enumerate(name for name in names if OBJECTIVES.get(name) and OBJECTIVES[name].tempered):
        style = ("-", "--", ":")[number // 8 % 3]
        middle = result.series[name]["accuracy"].mean(axis=1)
        axes[1].plot(temperatures, middle, style, marker=".", color=f"C{number % 8}", label=name)
    axes[1].set(xscale="log", xlabel="temperature", ylabel="test accuracy, mean over seeds, %")
    axes[1].set_xticks(temperatures, [f"{t:g}" for t in temperatures])
    axes[1].set_ylim(bottom=max(axes[1].get_ylim()[0], 85))
    if axes[1].get_legend_handles_labels()[0]:
        axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
