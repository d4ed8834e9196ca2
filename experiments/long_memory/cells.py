"""What the results on memory share: their settings, the recipe, and the training of one model on one task.

Importing this module imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.long_memory.networks import MODELS, ModelConfig, check_models
from experiments.long_memory.tasks import MemoryTask
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from experiments.long_memory.learning import Learned

TOLD = 0.95
"""Share of the answers that a model has to tell for its updates to be counted."""
COLUMNS = (
    "task",
    "model",
    "seed",
    "updates to 95 %",
    "updates",
    "accuracy",
    "chance",
    "parameters",
    "hidden",
    "seconds",
)


def recipe(
    steps: int, batch_size: int, eval_every: int, *, learning_rate: float = 3e-3, wrong: float = 0.01
) -> TrainConfig:
    """A training at a constant rate that ends once the worst seed tells nearly all answers.

    Args:
        steps: most updates.
        batch_size: sequences of an update.
        eval_every: updates between evaluations.
        learning_rate: of all updates, so that those to 95 % do not depend on how many there may be.
        wrong: share of wrong answers at which the training ends.

    Returns:
        The training.

    Example:
        >>> recipe(100, 8, 10).stop_at
        0.01
    """
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        eval_every=eval_every,
        stop_metric="unsolved",
        stop_at=wrong,
        patience=steps,
        optimizer=OptimizerConfig(learning_rate=learning_rate, schedule="constant"),
        checkpoint=CheckpointConfig(every=0),
    )


@dataclass(frozen=True)
class MemoryConfig(results.Config):
    """The models and their training; each result adds its task."""

    models: tuple[str, ...] = MODELS
    """Mixer and positions of each."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The size of the models."""
    evaluation_rows: int = 256
    """Sequences to evaluate on, and as many others to test on."""
    train: TrainConfig = field(default_factory=lambda: recipe(500, 32, 25))
    """The training of every model on every task."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        require("evaluation_rows", self.evaluation_rows, 1)
        require("train.eval_every", self.train.eval_every, 1)
        rows = self.train.batch_size
        if self.evaluation_rows > rows and self.evaluation_rows % rows:
            raise ValueError(f"evaluation_rows: got {self.evaluation_rows}, expected up to {rows} or a multiple of it")
        check_models(self.models)


def train_cell(config: MemoryConfig, task: MemoryTask, name: str, run_dir: Path) -> tuple[list[tuple], Any, Learned]:
    """Train a model on a task with every seed.

    Args:
        config: the sizes and the training.
        task: what it is trained on.
        name: mixer and positions of the model.
        run_dir: for checkpoints and metrics, in a folder of its own; a cell that is finished there is read back.

    Returns:
        Rows of COLUMNS, one per seed; the model; and what it learned.
    """
    from experiments.equal_size import count_parameters
    from experiments.long_memory.learning import learn, updates_to
    from experiments.long_memory.networks import network

    model, hidden = network(config.model, name, task.vocabulary, remat=config.train.remat)
    found = learn(
        config.train,
        model,
        task,
        run_dir / "training" / f"{task.name.replace(' ', '-')}-{name}",
        seeds=config.seeds,
        label=f"{task.name}, {name}",
        evaluation_rows=config.evaluation_rows,
    )
    size = (count_parameters(model, np.zeros((1, 4), np.int32)), hidden, found.seconds)
    reached = updates_to(TOLD, found.updates, found.accuracy)
    rows = [
        (task.name, name, seed, updates, int(found.updates[-1]), 100 * float(accuracy), 100 * task.chance, *size)
        for seed, updates, accuracy in zip(config.seeds, reached, found.tested, strict=True)
    ]
    return rows, model, found


def train_models(
    config: MemoryConfig, task: MemoryTask, run_dir: Path
) -> tuple[list[tuple], dict[str, dict[str, np.ndarray]]]:
    """Train every model of a config on a task with every seed.

    Args:
        config: the models, the sizes and the training.
        task: what they are trained on.
        run_dir: see `train_cell`.

    Returns:
        Rows of COLUMNS; and of each model "updates" (T,) and "accuracy" (seeds, T), %.
    """
    rows: list[tuple] = []
    curves = {}
    for name in config.models:
        cell, _, found = train_cell(config, task, name, run_dir)
        rows += cell
        curves[name] = {"updates": found.updates, "accuracy": 100 * found.accuracy}
    return rows, curves


def as_table(rows: Iterable[tuple], columns: tuple[str, ...] = COLUMNS) -> dict[str, list]:
    """Rows as columns by name.

    Args:
        rows: as `train_cell` gives them.
        columns: their names.

    Returns:
        column -> values.

    Example:
        >>> as_table([(1, "a"), (2, "b")], ("x", "y"))
        {'x': [1, 2], 'y': ['a', 'b']}
    """
    given = list(rows)
    return {name: [row[i] for row in given] for i, name in enumerate(columns)}


def column_of(table: Mapping[str, list], column: str, task: str, model: str) -> list:
    """Entries of a model on a task, one per seed.

    Args:
        table: of COLUMNS.
        column: which of them.
        task: name of the task.
        model: name of the model.

    Returns:
        The entries; empty if the model was not trained on the task.

    Example:
        >>> column_of({"task": ["a", "b"], "model": ["m", "m"], "accuracy": [1.0, 2.0]}, "accuracy", "b", "m")
        [2.0]
    """
    rows = zip(table["task"], table["model"], table[column], strict=True)
    return [entry for of_task, of_model, entry in rows if (of_task, of_model) == (task, model)]


def draw_curves(
    axis: Axes, curves: Mapping[str, Mapping[str, np.ndarray]], chance: float, colour: Callable[[str], str]
) -> None:
    """Accuracy against updates: a thin line per seed and a thick one for their mean; dotted: chance and 95 %.

    Args:
        axis: to draw on.
        curves: model -> "updates" (T,) and "accuracy" (seeds, T), %.
        chance: accuracy by chance, %.
        colour: of a model.
    """
    for name, curve in curves.items():
        axis.plot(curve["updates"], curve["accuracy"].T, color=colour(name), linewidth=0.5, alpha=0.5)
        mean = curve["accuracy"].mean(axis=0)
        axis.plot(curve["updates"], mean, color=colour(name), linewidth=1.6, label=name.partition("+")[0])
    for level in (100 * TOLD, chance):
        axis.axhline(level, color="black", linestyle=":", linewidth=0.8)
    axis.set(xlabel="updates", ylim=(0, 102))
    axis.grid(color="0.92")
