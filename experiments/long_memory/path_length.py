"""Memory over 16,384 steps, the length of Path-X: what a sequence begins with has to be told at its last token.

The first 1,024 tokens are all the one to be told, the rest is noise of other tokens. No picture and no path is in it,
so that it is not Path-X, but a necessary condition of it: what was read first has to be there 15,360 steps later, and
the gradient has to come back over as many. With a single token to be told (`gpu`) a state of step dt sees 1 / 1,024 of
it; after 200 updates of four such sequences all models guessed but one of three LightNets.

One block of each mixer, all of the same size. Softmax attention is computed at the last token, which alone is asked
(`LastQueryAttention`): its 16,384^2 scores of each head and sequence, 1 GiB, are needed by no answer.

The smallest initial step is the 1e-4 of S4's released settings for Path-X: with the 1e-3 of the mixers elsewhere the
slowest states of S4D would fade to exp(-8) of what they were over such a sequence until they learn to be slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.long_memory.cells import MemoryConfig, as_table, column_of, draw_curves, recipe, train_models
from experiments.long_memory.networks import ModelConfig, SlowModelConfig, colour
from experiments.long_memory.tasks import DISTANT, DistantConfig
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Efficiently Modeling Long Sequences with Structured State Spaces, S4 (arXiv 2111.00396)",
    source="Path-X's length, without its pictures (ours)",
    # Of gpu a guess: 21 trainings at 0.1 s an update.
    minutes={"smoke": 0.1, "cpu": 20, "gpu": 70},
)


@dataclass(frozen=True)
class Config(MemoryConfig):
    """The task, the models and their training."""

    task: DistantConfig = field(default_factory=lambda: DistantConfig(shown=1024))
    """The sizes of the task."""
    model: ModelConfig = field(default_factory=lambda: SlowModelConfig(1, 16, 2, 6000))
    evaluation_rows: int = 64
    train: TrainConfig = field(default_factory=lambda: recipe(200, 4, 25, learning_rate=1e-2))


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        models=("softmax+none",),
        task=DistantConfig(64, shown=4),
        model=SlowModelConfig(1, 8, 2, 1),
        evaluation_rows=4,
        train=recipe(2, 4, 2),
    ),
    "cpu": Config(),
    "gpu": Config(
        task=DistantConfig(),
        model=SlowModelConfig(1, 64, 4, 60_000),
        evaluation_rows=256,
        train=recipe(2000, 16, 100),
    ),
}

PATH_X = 16_384
# Claim -> how often what is to be told is read.
SHOWN = {"long_memory/s4-path-x-analogue": 1, "long_memory/s4-path-x-analogue-1024": 1024}
CLAIMS = tuple(
    Claim(
        id,
        f"16,384 steps, the answer read {shown:,} times at the start: smaller accuracy of S4D and S5, %; by chance 25",
        "above",
        50.0,
        kind="ours",
    )
    for id, shown in SHOWN.items()
)
CLAIMED = ("s4d+none", "s5+none")


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed."""
    rows, curves = train_models(config, config.task.task(), run_dir)
    table = as_table(rows)
    return Result(measured=_measured(config, table), tables={"models": table}, series=curves)


def _measured(config: Config, table: dict[str, list]) -> dict[str, Any]:
    """The claims whose sizes and models are there: one value per seed."""
    accuracies = [column_of(table, "accuracy", DISTANT, name) for name in CLAIMED]
    if config.task.length != PATH_X or not all(accuracies):
        return {}
    return {id: np.min(accuracies, axis=0) for id, shown in SHOWN.items() if shown == config.task.shown}


def plot(result: StoredResult) -> Figure:
    """Share of the answers against updates."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    draw_curves(axis, result.series, result.tables["models"]["chance"][0], colour)
    axis.set_ylabel("answers told, %")
    axis.legend(frameon=False, fontsize=8)
    return figure
