"""Where teacher and student look: Eigen-CAM of convolutional networks on digits, with and without attention transfer.

A convolutional teacher is trained on the labels of 800 images. Students, with fewer channels, learn from 100 of them by
cross-entropy, by attention transfer beside it, by Hinton's loss, and by both. Eigen-CAM shows each network's last
features by one map per image, whatever the class; how much a student looks where its teacher does is the correlation of
the two maps, the mean over the test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.distillation.digits import DigitsConfig, FitConfig
from experiments.distillation.objectives import OBJECTIVES, Objective, labels_only
from experiments.distillation.tables import cell_columns, difference, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from experiments.distillation.networks import Outputs

ABOUT = About(
    paper="Eigen-CAM (arXiv 2008.00299); attention transfer (arXiv 1612.03928)",
    source="activation maps of teacher and students, on digits (ours)",
    minutes={"smoke": 0.2, "cpu": 6},
)
ATTENTION_WEIGHT = 1.0
SHOWN = 6
STUDENTS = ("ce", "at", "hinton", "hinton + at")


@dataclass(frozen=True)
class Config(DigitsConfig):
    """Networks with as many pools as each other, so that their maps have one size."""

    teacher: str = "conv-16-32"
    """Of the teacher."""
    student: str = "conv-4-8"
    """Of the students."""
    students: tuple[str, ...] = STUDENTS
    """What they learn by."""
    temperature: float = 8.0
    """Of Hinton's loss."""
    teacher_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=600))
    """Training of the teacher."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=1000))
    """Training of the students."""

    def __post_init__(self) -> None:
        """Check the names."""
        super().__post_init__()
        shapes = [name.split("-") for name in (self.teacher, self.student)]
        if any(shape[0] != "conv" for shape in shapes) or len({len(shape) for shape in shapes}) > 1:
            raise ValueError(f"student: got {self.student!r}, expected conv and as many widths as of {self.teacher!r}")
        if not {"ce", "at"} <= set(self.students) <= set(STUDENTS):
            raise ValueError(f"students: got {self.students}, expected ce, at and any of {', '.join(STUDENTS[2:])}")
        require("temperature", self.temperature, 1e-6)


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teacher="conv-2-2",
        student="conv-2-2",
        students=("ce", "at"),
        teacher_fit=FitConfig(steps=2, batch_size=4),
        fit=FitConfig(steps=2, batch_size=4),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/at-looks-alike",
        "mean correlation of a student's and its teacher's Eigen-CAM on test images, attention transfer minus "
        "cross-entropy",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "distillation/at-digits",
        "test accuracy of students of attention transfer minus of cross-entropy, percentage points",
        "above",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train the networks, and compare their maps."""
    from experiments.distillation.saliency import eigen_cam, overlap
    from experiments.distillation.students import prepared
    from experiments.runs import record_data

    teachers, students = prepared(config)
    data = {"digits": students.parts.sha256}
    record_data(run_dir, data)
    some = {name: (one, config.temperature) for name, one in objectives().items() if name in config.students}
    labels = students.parts.test.labels
    maps = {"teacher": np.stack([np.asarray(eigen_cam(each)) for each in teachers.test.features])}
    found: dict[str, dict[str, Any]] = {}
    for name, (one, at) in some.items():
        outputs = students.outputs(one, teachers, at)
        maps[name] = np.stack([np.asarray(eigen_cam(each)) for each in outputs.features])
        alike = [float(overlap(a, b).mean()) for a, b in zip(maps[name], maps["teacher"], strict=True)]
        right = 100.0 * (np.asarray(outputs.logits).argmax(axis=-1) == labels).mean(axis=-1)
        found[name] = {"accuracy": right, "overlap": np.array(alike)}
    measures = ["accuracy", "overlap"]
    tables = {"cells": cell_columns(found, measures), "seeds": seed_columns(found, config.seeds, measures)}
    shown = {name: each[0, :SHOWN] for name, each in maps.items()}
    series = {"maps": {"images": students.parts.test.images[:SHOWN, ..., 0], **shown}}
    return Result(measured=_measured(found), tables=tables, series=series, data=data)


def objectives() -> dict[str, Objective]:
    """What the students learn by."""
    return {
        "ce": OBJECTIVES["ce"],
        "at": Objective(lambda s, t, y, at: labels_only(s, t, y, at) + attention(s, t), "CE + AT"),
        "hinton": OBJECTIVES["hinton"],
        "hinton + at": Objective(
            lambda s, t, y, at: OBJECTIVES["hinton"].loss(s, t, y, at) + attention(s, t), "KD + AT"
        ),
    }


def attention(s: Outputs, t: Outputs) -> jax.Array:
    """The weighted distance of the attention maps of the last features."""
    import kd

    return ATTENTION_WEIGHT * kd.attention_transfer(s.features, t.features)


def _measured(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    at, ce = found["at"], found["ce"]
    return {
        "distillation/at-looks-alike": difference(at["overlap"], ce["overlap"]),
        "distillation/at-digits": difference(at["accuracy"], ce["accuracy"]),
    }


def plot(result: StoredResult) -> Figure:
    """Test images, and what each network looks at there."""
    from matplotlib import pyplot as plt

    maps, cells = result.series["maps"], result.tables["cells"]
    rows = ["images", "teacher", *cells["student"]]
    alike = dict(zip(cells["student"], cells["overlap"], strict=True))
    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(1.2 * SHOWN + 1, 1.2 * len(rows)), layout="constrained")
    for line, name in zip(axes, rows, strict=True):
        for axis, map in zip(line, maps[name], strict=True):
            axis.imshow(map, cmap="gray" if name == "images" else "viridis")
            axis.set(xticks=[], yticks=[])
        label = f"{name}\n{alike[name]:.2f}" if name in alike else name
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    return figure
