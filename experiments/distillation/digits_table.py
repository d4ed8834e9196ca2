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

from experiments.distillation.digits import DigitsConfig, FitConfig, interval, tuning_seeds
from experiments.distillation.objectives import OBJECTIVES, objective
from experiments.results import About, Claim, Result, StoredResult
from experiments.statistics import paired_differences
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.distillation.fitting import Students, Teachers

ABOUT = About(
    paper="KD, DKD, DIST, SinKD (arXiv 2402.17110), BD-KD (2212.12965), PLD (2506.12542), MCMI (2401.08732), ABKD",
    source="an analogue of their main tables, on digits (ours)",
    minutes={"smoke": 0.2, "cpu": 7, "gpu": 10},
)
FROZEN = tuple(name for name, each in OBJECTIVES.items() if not each.joint)
CELLS = ("accuracy", "agreement", "entropy", "calibration error")


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
    "gpu": Config(
        seeds=tuple(range(30)),
        teacher="mlp-1024-1024",
        student="mlp-64-64",
        tuned_with=30,
        at_once=30,
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
    tables = {"cells": _cells(config, found, chosen), "seeds": _seeds(config, found, chosen)}
    series = {name: {"accuracy": each["accuracy"], "chosen": np.array(chosen[name])} for name, each in found.items()}
    series["grid"] = {"temperature": np.array(config.temperatures)}
    at = {name: each["accuracy"][chosen[name]] for name, each in found.items()}
    return Result(measured=_measured(at), tables=tables, series=series, data=data)


def _cohort(config: Config, seeds: tuple[int, ...]) -> tuple[dict[str, Teachers], Students]:
    """Both teachers of every seed, and its students."""
    from experiments.distillation.fitting import mcmi_teachers, prepared

    teachers, students = prepared(config, seeds)
    named = {"cross-entropy": teachers}
    if any(OBJECTIVES[name].teacher == "mcmi" for name in config.objectives):
        named["mcmi"] = mcmi_teachers(
            teachers, students.parts, seeds, config.mcmi_fit, weight=config.mcmi_weight, at_once=config.at_once
        )
    return named, students


def _cells(config: Config, found: Mapping[str, Any], chosen: Mapping[str, int]) -> dict[str, list]:
    """A row for each objective, and one for the teacher: every measure with its interval."""
    rows: dict[str, list] = {"objective": [], "temperature": []}
    for cell in CELLS:
        rows |= {cell: [], f"{cell}, low": [], f"{cell}, high": []}

    def append(name: str, temperature: float | str, values: Mapping[str, Any]) -> None:
        rows["objective"].append(name)
        rows["temperature"].append(temperature)
        for cell in CELLS:
            for column, number in zip((cell, f"{cell}, low", f"{cell}, high"), interval(values[cell]), strict=True):
                rows[column].append(number)

    for name, each in found.items():
        temperature = config.temperatures[chosen[name]] if OBJECTIVES[name].tempered else ""
        append(name, temperature, {cell: each[cell][chosen[name]] for cell in CELLS})
    for kind in dict.fromkeys(OBJECTIVES[name].teacher for name in found):
        taught = next(each for name, each in found.items() if OBJECTIVES[name].teacher == kind)
        own = {cell: taught[f"teacher {cell}"][0] for cell in CELLS if cell != "agreement"}
        append(f"the teacher ({kind})", "", own | {"agreement": np.full(len(config.seeds), 100.0)})
    return rows


def _seeds(config: Config, found: Mapping[str, Any], chosen: Mapping[str, int]) -> dict[str, list]:
    rows: dict[str, list] = {"objective": [], "seed": [], **{cell: [] for cell in CELLS}}
    for name, each in found.items():
        for place, seed in enumerate(config.seeds):
            values = [float(each[cell][chosen[name], place]) for cell in CELLS]
            for column, entry in zip(rows.values(), (name, seed, *values), strict=True):
                column.append(entry)
    return rows


def _measured(at: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One value per claim and seed, of those claims whose objectives are there."""

    def over(a: str, *others: str) -> list[float]:
        return paired_differences(at[a].tolist(), np.max([at[name] for name in others], axis=0).tolist())

    pairs: dict[str, tuple[str, ...]] = {
        "hinton-kd-beats-ce": ("hinton", "ce"),
        "kd-beyond-smoothing": ("hinton", "smoothed"),
        "dist-digits": ("dist", "hinton"),
        "sinkd-digits": ("sinkd", "hinton"),
        "pld-digits": ("pld", "ce", "hinton", "dist"),
        "mcmi-digits": ("mcmi", "hinton"),
    }
    found: dict[str, Any] = {id: over(*names) for id, names in pairs.items() if set(names) <= set(at)}
    if {"dkd", "hinton", "ce"} <= set(at):
        found["dkd-digits"] = np.minimum(over("dkd", "hinton"), over("hinton", "ce"))
    return {f"distillation/{id}": values for id, values in found.items()}


def plot(result: StoredResult) -> Figure:
    """Left: accuracy of each objective, mean and 95 % interval. Right: accuracy against the temperature."""
    from matplotlib import pyplot as plt

    cells = result.tables["cells"]
    names = cells["objective"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.8 + 0.22 * len(names)), layout="constrained")
    ends = (cells[key] for key in ("accuracy", "accuracy, low", "accuracy, high"))
    for height, row in enumerate(zip(*ends, strict=True)):
        _row(axes[0], len(names) - 1 - height, *row)
    labels = [f"{name}, T {t:g}" if t != "" else name for name, t in zip(names, cells["temperature"], strict=True)]
    axes[0].set(yticks=range(len(names)), xlabel="test accuracy, %")
    axes[0].set_yticklabels(labels[::-1], fontsize=8)
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


def _row(axis: Axes, height: int, middle: float, low: float, high: float) -> None:
    axis.hlines(height, low, high, color="#0072B2", linewidth=2)
    axis.plot(middle, height, "o", markersize=4, color="#0072B2")
