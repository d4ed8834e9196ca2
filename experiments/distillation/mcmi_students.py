"""Students of MCMI's teachers: few images, a digit never seen, and conditional information against temperature.

A teacher is trained on labels, and another one fine-tuned from it for the conditional mutual information of input and
output given the class, with the centroids of the start as in the published code. The paper's weight of the information
differs from network to network; here it is the one of `mcmi_weights` from whose teacher students of other seeds learn
best, as seen on images that nobody learns from. A third teacher is fine-tuned as long without any information, since
that alone makes a teacher more certain. Students learn by Hinton's loss at the
code's temperature 4, and by CRD, from a part of the 800 images, with as many of each class; and, for the second
question, from the largest part without one digit, the last one of the seed, so that ten seeds leave out all ten.

What MCMI gives could be had from a higher temperature too. So the teacher trained on labels also teaches at the
temperatures of `controls`, and the claim of zero-shot accuracy is put against the best of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.distillation.digits import CLASSES, DigitsConfig, FitConfig, transfer_rows, tuning_seeds
from experiments.distillation.objectives import OBJECTIVES, objective
from experiments.distillation.tables import cell_columns, difference, draw_curve, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.distillation.students import Students
    from experiments.distillation.teachers import Teachers

ABOUT = About(
    paper="MCMI (arXiv 2401.08732)",
    source="few-shot and zero-shot tables and Figure 1, on digits (ours)",
    minutes={"smoke": 0.3, "cpu": 5},
)
ORDINARY, LONGER, MCMI = "cross-entropy", "longer", "mcmi"


@dataclass(frozen=True)
class Config(DigitsConfig):
    """The parts of the images, the teachers and the temperatures."""

    shares: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 0.85)
    """Of the 800 images, ascending; the largest is what equal numbers of each class allow."""
    objectives: tuple[str, ...] = ("hinton", "crd")
    """Of the students of parts of the images."""
    temperature: float = 4.0
    """Of Hinton's loss."""
    controls: tuple[float, ...] = (8.0, 16.0)
    """Temperatures of further students of the ordinary teacher."""
    curve: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
    """Temperatures at which the conditional information of both teachers is computed."""
    mcmi_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=200, learning_rate=5e-4))
    """Fine-tuning of MCMI's teacher, at half the rate."""
    mcmi_weights: tuple[float, ...] = (0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8)
    """Weights of the conditional information to choose from; the paper's are 0.15 to 0.8."""
    tuned_with: int = 10
    """Further seeds, with whose students the weight is chosen."""
    tuned_at: float = 0.1
    """Part of the images that these students learn from."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("tuned_with", self.tuned_with, 1)
        require("tuned_at", self.tuned_at, 0.0125, 0.85)
        if not self.mcmi_weights or min(self.mcmi_weights) <= 0:
            raise ValueError(f"mcmi_weights: got {self.mcmi_weights}, expected at least one, all above 0")
        if not self.shares or list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"shares: got {self.shares}, expected at least one, ascending")
        require("shares", self.shares[0], 0.0125)
        require("shares", self.shares[-1], 0.0125, 0.85)
        for name in self.objectives:
            if objective(name, "objectives").joint:
                raise ValueError(f"objectives: got {name!r}, expected one with a teacher that stays as it is")
        if "hinton" not in self.objectives:
            raise ValueError(f"objectives: got {self.objectives}, expected hinton among them")
        for name in ("temperature", "controls", "curve"):
            values = np.atleast_1d(getattr(self, name))
            if len(values) == 0 or min(values) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected temperatures above 0")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teacher="mlp-8",
        shares=(0.05,),
        objectives=("hinton",),
        controls=(8.0,),
        curve=(1.0, 4.0),
        mcmi_weights=(0.4,),
        teacher_fit=FitConfig(steps=3),
        mcmi_fit=FitConfig(steps=2),
        fit=FitConfig(steps=3),
    ),
    "cpu": Config(),
}


def _claim(id: str, what: str, test: Any = "above", kind: Any = "paper", expected: float = 0.0) -> Claim:
    return Claim(f"distillation/{id}", what, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "mcmi-few-shot",
        "test accuracy of students of MCMI's minus of the ordinary teacher, Hinton's loss, smallest of 5, 10, 25 and "
        "50 % of the images, percentage points",
    ),
    _claim(
        "mcmi-few-shot-extremes",
        "what MCMI's teacher adds to the test accuracy at 5 % of the images minus what it adds at 85 %, percentage "
        "points",
    ),
    _claim(
        "mcmi-few-shot-crd",
        "test accuracy of students of MCMI's minus of the ordinary teacher, CRD, smallest of 5, 10, 25 and 50 % of the "
        "images, percentage points",
    ),
    _claim(
        "mcmi-zero-shot",
        "test accuracy on the digit that was left out, MCMI's minus the ordinary teacher, same temperature, percentage "
        "points",
    ),
    _claim(
        "mcmi-zero-shot-temperature",
        "test accuracy on the digit that was left out, MCMI's teacher at temperature 4 minus the ordinary one at the "
        "better of 8 and 16, percentage points",
        kind="control",
    ),
    _claim(
        "mcmi-zero-shot-fine-tuning",
        "test accuracy on the digit that was left out, MCMI's teacher minus one fine-tuned as long on labels alone, "
        "same temperature, percentage points",
        kind="control",
    ),
    _claim(
        "mcmi-teacher-less-accurate",
        "test accuracy of MCMI's minus of the ordinary teacher, percentage points",
        "below",
    ),
    _claim(
        "mcmi-cmi-rises-with-temperature",
        "smallest rise of the ordinary teacher's conditional information from each temperature to the next, 1 to 4, "
        "nats",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train the teachers of every seed and their students on parts of the images and without a digit."""
    from experiments.distillation.students import prepared
    from experiments.runs import record_data

    ordinary, students = prepared(config)
    data = {"digits": students.parts.sha256}
    record_data(run_dir, data)
    weights = _tried(config)
    weight = config.mcmi_weights[int(np.argmax(weights["accuracy"]))]
    tuned = {name: _tuned(config, ordinary, students, each) for name, each in ((LONGER, 0.0), (MCMI, weight))}
    teachers = {ORDINARY: ordinary, **tuned}
    found = _few_shot(config, students, teachers)
    unseen = _zero_shot(config, students, teachers)
    information = {name: _information(each, students, config.curve) for name, each in teachers.items()}
    taught = {f"teacher, {name}": found[(name, "hinton", config.shares[-1])] for name in teachers}
    accuracy = {name.partition(", ")[2]: each["teacher accuracy"] for name, each in taught.items()}
    measured = _measured(config, found, unseen, information) | {
        "distillation/mcmi-teacher-less-accurate": difference(accuracy[MCMI], accuracy[ORDINARY])
    }
    named = {f"{name}, {loss}, {share:g}": each for (name, loss, share), each in found.items()}
    tables = {
        "few_shot": cell_columns(named),
        "few_shot_seeds": seed_columns(named, config.seeds),
        "zero_shot": cell_columns(unseen, ["unseen", "accuracy"]),
        "zero_shot_seeds": seed_columns(unseen, config.seeds, ["unseen", "accuracy"]),
        "weights": weights,
        "teachers": cell_columns(taught, ["teacher accuracy", "teacher entropy", "teacher calibration error"]),
    }
    return Result(measured=measured, tables=tables, series={"information": information}, data=data)


def _tuned(config: Config, teachers: Teachers, students: Students, weight: float) -> Teachers:
    from experiments.distillation.teachers import mcmi_teachers

    fit, at_once = config.mcmi_fit, config.at_once
    return mcmi_teachers(teachers, students.parts, students.seeds, fit, weight=weight, at_once=at_once)


def _tried(config: Config) -> dict[str, list[float]]:
    """Each weight, and how often students of other seeds are right on the validation images; 0 if not finite."""
    from experiments.distillation.students import prepared

    if len(config.mcmi_weights) == 1:
        return {"weight": list(config.mcmi_weights), "accuracy": [0.0]}
    teachers, students = prepared(config, tuning_seeds(config.tuned_with))
    labels = students.parts.train.labels
    count = round(config.tuned_at * len(labels))
    some = replace(students, rows=tuple(transfer_rows(labels, count, seed) for seed in students.seeds))
    rows: dict[str, list[float]] = {"weight": [], "accuracy": [], "teacher accuracy": []}
    for weight in config.mcmi_weights:
        tuned = _tuned(config, teachers, students, weight)
        found = some.distil(OBJECTIVES["hinton"], tuned, (config.temperature,))["validation"]
        for column, value in (("weight", weight), *((c, found[c].mean()) for c in ("accuracy", "teacher accuracy"))):
            rows[column].append(float(np.nan_to_num(value)))
    return rows


def _few_shot(config: Config, students: Students, teachers: Mapping[str, Teachers]) -> dict[tuple, dict[str, Any]]:
    """(teacher, objective, share) -> measures of the students."""
    found = {}
    labels = students.parts.train.labels
    for share in config.shares:
        rows = tuple(transfer_rows(labels, round(share * len(labels)), seed) for seed in config.seeds)
        some = replace(students, rows=rows)
        for loss in config.objectives:
            for name, each in teachers.items():
                variants = {"": (OBJECTIVES[loss], config.temperature)}
                found[(name, loss, share)] = some.compare(variants, each)[""]
    return found


def _zero_shot(config: Config, students: Students, teachers: Mapping[str, Teachers]) -> dict[str, dict[str, Any]]:
    """Student -> measures, accuracy on the digit that was left out among them."""
    labels = students.parts.train.labels
    count = round(config.shares[-1] * len(labels))
    without = [seed % CLASSES for seed in config.seeds]
    rows = tuple(transfer_rows(labels, count, seed, digit) for seed, digit in zip(config.seeds, without, strict=True))
    some = replace(students, rows=rows, of_interest=tuple(without))
    hinton, found = OBJECTIVES["hinton"], {}
    for name, temperatures in (
        (ORDINARY, (config.temperature, *config.controls)),
        *((name, (config.temperature,)) for name in (LONGER, MCMI)),
    ):
        measured = some.distil(hinton, teachers[name], temperatures)["test"]
        for place, temperature in enumerate(temperatures):
            found[f"{name}, T {temperature:g}"] = {cell: values[place] for cell, values in measured.items()}
    return {**found, **some.compare({"labels only": (OBJECTIVES["ce"], 1.0)}, teachers[ORDINARY])}


def _information(teachers: Teachers, students: Students, temperatures: tuple[float, ...]) -> np.ndarray:
    """Conditional information given the class, with the centroids of each temperature: (temperatures, seeds)."""
    import jax

    import kd

    labels = students.parts.train.labels

    def one(logits: Any, temperature: float) -> Any:
        centroids = kd.class_centroids(jax.nn.softmax(logits / temperature), labels, CLASSES)
        return kd.conditional_information(logits, labels, centroids, temperature=temperature).mean()

    return np.array([[float(one(z, at)) for z in teachers.train.logits] for at in temperatures])


def _measured(
    config: Config, found: Mapping[tuple, Any], unseen: Mapping[str, Any], information: Any
) -> dict[str, Any]:
    def gain(loss: str, share: float) -> np.ndarray:
        mcmi, ordinary = (found[(name, loss, share)]["accuracy"] for name in (MCMI, ORDINARY))
        return difference(mcmi, ordinary)

    few = config.shares[:-1] or config.shares
    at = {name: each["unseen"] for name, each in unseen.items()}
    mcmi = at[f"{MCMI}, T {config.temperature:g}"]
    low = np.array(config.curve) <= config.temperature
    measured = {
        "distillation/mcmi-few-shot": np.min([gain("hinton", share) for share in few], axis=0),
        "distillation/mcmi-few-shot-extremes": gain("hinton", config.shares[0]) - gain("hinton", config.shares[-1]),
        "distillation/mcmi-zero-shot": difference(mcmi, at[f"{ORDINARY}, T {config.temperature:g}"]),
        "distillation/mcmi-zero-shot-fine-tuning": difference(mcmi, at[f"{LONGER}, T {config.temperature:g}"]),
        "distillation/mcmi-zero-shot-temperature": difference(
            mcmi, *(at[f"{ORDINARY}, T {temperature:g}"] for temperature in config.controls)
        ),
        "distillation/mcmi-cmi-rises-with-temperature": np.diff(information[ORDINARY][low], axis=0).min(axis=0),
    }
    if "crd" in config.objectives:
        measured["distillation/mcmi-few-shot-crd"] = np.min([gain("crd", share) for share in few], axis=0)
    return measured


def plot(result: StoredResult) -> Figure:
    """Accuracy against the share of the images; accuracy on the digit left out; information against temperature."""
    from matplotlib import pyplot as plt

    from experiments.distillation.tables import draw_cells

    shares, seeds = result.config["shares"], len(result.seeds)
    table = result.tables["few_shot_seeds"]
    values = np.array(table["accuracy"]).reshape(len(shares), -1, 3, seeds)
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), layout="constrained")
    for column, loss in enumerate(result.config["objectives"]):
        for row, name in enumerate((ORDINARY, LONGER, MCMI)):
            style = {"color": f"C{row}", "linestyle": ("-", "--")[column]}
            draw_curve(axes[0], 100 * np.array(shares), values[:, column, row], f"{loss}, {name}", **style)
    axes[0].set(xscale="log", xlabel="part of the images, %", ylabel="test accuracy, %")
    axes[0].set_xticks(100 * np.array(shares), [f"{100 * share:g}" for share in shares])
    draw_cells(axes[1], result.tables["zero_shot"], "unseen")
    axes[1].set(xlabel="test accuracy on the digit left out, %")
    for name, curve in result.series["information"].items():
        draw_curve(axes[2], result.config["curve"], curve, name)
    axes[2].set(xscale="log", xlabel="temperature", ylabel="conditional information, nats")
    axes[2].set_xticks(result.config["curve"], [f"{at:g}" for at in result.config["curve"]])
    for axis in (axes[0], axes[2]):
        axis.minorticks_off()
        axis.legend(fontsize=7)
    return figure
