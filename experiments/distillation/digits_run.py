"""One distillation on digits as a run of the training loop: checkpoints, metrics, and what can interrupt them.

`teacher`, `student` and `objective` name the networks and the loss. A teacher is trained by the loop on the labels of
800 images; then a student learns by the objective, and another one, the control, by cross-entropy, on the same 100
images. Both are evaluated beside the teacher from before the first update on, so that a broken teacher shows there.
With the objective `bd_kd_online` the teacher goes on learning with its student, on the 100 images.

    python -m experiments run distillation/digits_run --config.objective dkd --config.student conv-8-16
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.distillation.digits import CLASSES, digit_parts, read_network, transfer_rows
from experiments.distillation.objectives import OBJECTIVES, objective
from experiments.results import About, Claim, Result, StoredResult
from experiments.statistics import paired_differences
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.distillation.digits import Parts
    from experiments.training.loop import Outcome

ABOUT = About(
    paper="Hinton et al., knowledge distillation (arXiv 1503.02531)",
    source="main claim, in the training loop (ours)",
    minutes={"smoke": 0.2, "cpu": 3},
)
MEASURES = ("accuracy", "agreement", "entropy", "teacher entropy", "calibration error", "teacher accuracy")


def _recipe(steps: int, rate: float, eval_every: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=64,
        eval_every=eval_every,
        optimizer=OptimizerConfig(learning_rate=rate, schedule="cosine", b2=0.999, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=500),
    )


@dataclass(frozen=True)
class Config(results.Config):
    """Teacher, student, objective and both trainings."""

    teacher: str = "mlp-256-256"
    """Kind and widths of the teacher."""
    student: str = "mlp-16"
    """Kind and widths of the student."""
    objective: str = "hinton"
    """A name in `experiments.distillation.objectives`."""
    control: str = "ce"
    """Objective of a second student, to compare with; empty: none."""
    temperature: float = 4.0
    """Of the objective."""
    images: int = 100
    """Labelled images that the student learns from."""
    teacher_train: TrainConfig = field(default_factory=lambda: _recipe(1000, 1e-3, 500))
    """The training of the teacher."""
    train: TrainConfig = field(default_factory=lambda: _recipe(2000, 3e-3, 200))
    """The training of the student, and of the control."""

    def __post_init__(self) -> None:
        """Check the names and ranges."""
        super().__post_init__()
        for name in ("teacher", "student"):
            read_network(getattr(self, name), name)
        for field_name, name in (("control", self.control), ("objective", self.objective)):
            if name and objective(name, field_name).teacher != "cross-entropy":
                raise ValueError(f"{field_name}: got {name!r}, expected one whose teacher is trained on labels")
        if self.control == self.objective:
            raise ValueError(f"control: got {self.control!r}, the objective, expected another one or none")
        require("images", self.images, CLASSES, 700)
        require("train.eval_every", self.train.eval_every, 1)
        if self.temperature <= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected above 0")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teacher="mlp-8",
        control="",
        teacher_train=_recipe(2, 1e-3, 2),
        train=_recipe(2, 3e-3, 2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/loop-over-labels",
        "test accuracy of the student minus that of the control, percentage points",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "distillation/loop-teacher-stays",
        "largest difference between the teacher's accuracy at an evaluation of the student's training, the one before "
        "the first update included, and at the end of its own, percentage points",
        "within",
        0.0,
        kind="control",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train a teacher, a student and a control with every seed."""
    from experiments.runs import record_data

    parts = digit_parts()
    data = {"digits": parts.sha256}
    record_data(run_dir, data)
    names = [name for name in (config.control, config.objective) if name]
    rows: dict[str, list] = {"seed": [], "student": [], **{name: [] for name in MEASURES}}
    curves: dict[str, dict[str, list]] = {name: {measure: [] for measure in MEASURES} for name in names}
    moved = []
    for seed in config.seeds:
        teacher = train_teacher(config, parts, run_dir, seed)
        for name in names:
            found = train_student(config, parts, teacher.params, name, run_dir, seed).evaluation
            for column, entry in zip(rows.values(), (seed, name, *(found[key][-1] for key in MEASURES)), strict=True):
                column.append(entry if isinstance(entry, int | str) else float(entry))
            for measure, so_far in curves[name].items():
                so_far.append(found[measure])
        moved.append(float(np.abs(found["teacher accuracy"] - teacher.evaluation["accuracy"][-1]).max()))
    series = {name: {key: np.stack(values) for key, values in each.items()} for name, each in curves.items()}
    series["updates"] = {"updates": found["step"]}
    return Result(_measured(config, curves, moved), tables={"students": rows}, series=series, data=data)


def _measured(config: Config, curves: dict[str, dict[str, list]], moved: list[float]) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    if config.control == "ce":
        last = {name: [float(values[-1]) for values in each["accuracy"]] for name, each in curves.items()}
        measured["distillation/loop-over-labels"] = paired_differences(last[config.objective], last["ce"])
    if not OBJECTIVES[config.objective].joint:
        measured["distillation/loop-teacher-stays"] = moved
    return measured


def train_teacher(config: Config, parts: Parts, run_dir: Path, seed: int) -> Outcome:
    """The teacher of a seed.

    Args:
        config: its network and training.
        parts: the images.
        run_dir: for checkpoints and metrics.
        seed: of everything.

    Returns:
        Its training.
    """
    from experiments.distillation.networks import network
    from experiments.distillation.task import columns, label_task
    from experiments.training.loop import train

    task, folder = label_task(network(config.teacher), parts.test), run_dir / "training" / f"teacher-seed{seed}"
    label = f"teacher, seed {seed}"
    return train(config.teacher_train, task, columns(parts.train), folder, seed=seed, label=label)


def train_student(config: Config, parts: Parts, taught: Any, name: str, run_dir: Path, seed: int) -> Outcome:
    """A student of a seed.

    Args:
        config: its network and training.
        parts: the images.
        taught: variables of the teacher.
        name: of the objective.
        run_dir: for checkpoints and metrics.
        seed: of everything.

    Returns:
        Its training.
    """
    from experiments.distillation.networks import network
    from experiments.distillation.task import columns, distillation_task
    from experiments.training.loop import train

    chosen, (_, widths) = OBJECTIVES[name], read_network(config.teacher, "teacher")
    student = network(config.student, widths[-1] if chosen.projected else 0)
    task = distillation_task(student, network(config.teacher), taught, chosen, config.temperature, parts.test)
    rows = transfer_rows(parts.train.labels, config.images, seed)
    folder, label = run_dir / "training" / f"{name}-seed{seed}", f"{name}, seed {seed}"
    return train(config.train, task, columns(parts.train, rows), folder, seed=seed, label=label)


def plot(result: StoredResult) -> Figure:
    """Accuracy, agreement, entropy and calibration error on the test images, update by update; dashed: the teacher."""
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(result.tables["students"]["student"]))
    updates = result.series["updates"]["updates"]
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.8), layout="constrained")
    shown = {"accuracy": ", %", "agreement": ", %", "entropy": ", nats", "calibration error": ""}
    for axis, (measure, unit) in zip(axes, shown.items(), strict=True):
        for number, name in enumerate(names):
            axis.plot(updates, result.series[name][measure].mean(axis=0), color=f"C{number}", label=name)
        if (of_teacher := f"teacher {measure}") in MEASURES:
            axis.plot(updates, result.series[names[-1]][of_teacher].mean(axis=0), "--", color="black", label="teacher")
        axis.set(xlabel="updates", ylabel=measure + unit)
    axes[0].legend(fontsize=7)
    return figure
