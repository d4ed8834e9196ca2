"""One table of memory: four tasks, seven mixers, equal sizes; updates to 95 % of the answers, and accuracy at the end.

Selective copying (arXiv 2312.00752), induction heads (the same), associative recall of many keys (arXiv 2312.04927) and
ListOps (arXiv 1804.06028, drawn as in 2011.04006), all generated and short enough for two cores. The stack is the same
for all: a mixer and a GLU in each block, whose width gives all models the same number of parameters. LightNet, plain
linear attention and softmax attention have LightNet's two encodings, since they know no order by themselves.

Every model sees the same sequences, drawn anew for every update (ListOps: from a pool). A training ends once all seeds
tell 99 % of the answers. All tasks and mixers have one recipe; nothing was searched for but one other
rate, for Mamba, and the number of updates, on associative recall with a seed that is not reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.long_memory.cells import MemoryConfig, as_table, column_of, draw_curves, recipe, train_models
from experiments.long_memory.networks import ModelConfig, colour
from experiments.long_memory.tasks import (
    ASSOCIATIVE,
    COPYING,
    INDUCTION,
    LISTOPS,
    AssociativeConfig,
    CopyingConfig,
    InductionConfig,
    ListOpsConfig,
)
from experiments.registry import unknown
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Mamba (arXiv 2312.00752), Zoology (arXiv 2312.04927) and Long Range Arena (arXiv 2011.04006)",
    source="their recall tasks, small and generated (ours)",
    # Of gpu a guess: 84 trainings at 26 ms an update, and three minutes to draw the expressions.
    minutes={"smoke": 0.1, "cpu": 40, "gpu": 78},
)


@dataclass(frozen=True)
class Config(MemoryConfig):
    """The tasks, the models and their training."""

    task_names: tuple[str, ...] = (COPYING, INDUCTION, ASSOCIATIVE, LISTOPS)
    """Which tasks."""
    copying: CopyingConfig = field(default_factory=CopyingConfig)
    """Sizes of selective copying."""
    induction: InductionConfig = field(default_factory=InductionConfig)
    """Sizes of induction heads."""
    associative: AssociativeConfig = field(default_factory=AssociativeConfig)
    """Sizes of associative recall."""
    listops: ListOpsConfig = field(default_factory=ListOpsConfig)
    """Sizes of ListOps."""
    train: TrainConfig = field(default_factory=lambda: recipe(2000, 32, 50))

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        for name in self.task_names:
            if name not in self.sizes:
                raise ValueError(f"task_names: {unknown('task', name, self.sizes)}")

    @property
    def sizes(self) -> dict[str, Any]:
        """Task -> its sizes."""
        sizes = (self.copying, self.induction, self.associative, self.listops)
        return dict(zip((COPYING, INDUCTION, ASSOCIATIVE, LISTOPS), sizes, strict=True))


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        task_names=(ASSOCIATIVE,),
        models=("softmax+none",),
        associative=AssociativeConfig(8, 2, 8),
        model=ModelConfig(1, 8, 2, 1),
        evaluation_rows=4,
        train=recipe(2, 4, 2),
    ),
    "cpu": Config(),
    # Lengths are published; the alphabet of associative recall is smaller, so that one size of model is for all tasks.
    "gpu": Config(
        copying=CopyingConfig(4096, 16, 16),
        induction=InductionConfig(256),
        associative=AssociativeConfig(512, 64, 256),
        listops=ListOpsConfig(depth=9, arguments=10, shortest=501, longest=1999, pool=2048),
        model=ModelConfig(2, 64, 4, 150_000),
        train=recipe(2000, 64, 100, learning_rate=1e-3),
    ),
}

ATTENTIVE, INVARIANT = ("softmax+both", "mamba+none", "mamba2+none"), ("s4d+none", "s5+none")
STATE_SPACES = ("s4d+none", "s5+none", "mamba+none", "mamba2+none")
# What claims are about, at the sizes of `cpu` and at the published ones.
# Tokens and pairs, depth and most tokens.
OF_PAIRS = {(32, 8): "", (512, 64): "-64-pairs"}
OF_TOKENS = {(3, 31): "listops-31-tokens", (9, 1999): "listops-1999-tokens"}


def _of_pairs(pairs: int, end: str) -> tuple[Claim, ...]:
    task = f"associative recall of {pairs} pairs"
    gap = "the smallest accuracy of softmax attention, Mamba and Mamba-2 minus the larger one of S4D and S5"
    more = "accuracy of LightNet minus that of plain linear attention with the same encodings"
    return (
        Claim(f"long_memory/mqar-attention-gap{end}", f"{task}: {gap}, percentage points", "above", 10.0),
        Claim(
            f"long_memory/lightnet-recalls-more-than-linear{end}",
            f"{task}: {more}, percentage points",
            "above",
            0.0,
            kind="ours",
        ),
    )


def _of_listops(longest: int, name: str) -> Claim:
    quantity = f"ListOps of at most {longest} tokens: the smallest accuracy of S4D, S5, Mamba and Mamba-2, %"
    # three times what guessing one of ten digits gives
    return Claim(f"long_memory/{name}", quantity, "above", 30.0, kind="ours")


CLAIMS = (
    *(claim for (_, pairs), end in OF_PAIRS.items() for claim in _of_pairs(pairs, end)),
    *(_of_listops(longest, name) for (_, longest), name in OF_TOKENS.items()),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model on every task with every seed."""
    from experiments.runs import record_data

    tasks = [config.sizes[name].task() for name in config.task_names]
    data = {name: sha256 for task in tasks for name, sha256 in task.data.items()}
    record_data(run_dir, data)
    rows: list[tuple] = []
    curves: dict[str, dict[str, np.ndarray]] = {}
    for task in tasks:
        of_task, found = train_models(config, task, run_dir)
        rows += of_task
        curves |= {f"{task.name}, {name}": curve for name, curve in found.items()}
    table = as_table(rows)
    return Result(measured=_measured(config, table), tables={"models": table}, series=curves, data=data)


def _measured(config: Config, table: Mapping[str, list]) -> dict[str, Any]:
    """The claims on those tasks and models that are there and on their sizes, one value per seed."""

    def of(task: str, models: tuple[str, ...]) -> np.ndarray | None:
        found = [column_of(table, "accuracy", task, model) for model in models]
        return np.array(found) if all(found) else None

    measured: dict[str, Any] = {}
    attentive, invariant = of(ASSOCIATIVE, ATTENTIVE), of(ASSOCIATIVE, INVARIANT)
    end = OF_PAIRS.get((config.associative.length, config.associative.pairs))
    listops = OF_TOKENS.get((config.listops.depth, config.listops.longest))
    if end is not None and attentive is not None and invariant is not None:
        measured[f"long_memory/mqar-attention-gap{end}"] = attentive.min(axis=0) - invariant.max(axis=0)
    if listops is not None and (spaces := of(LISTOPS, STATE_SPACES)) is not None:
        measured[f"long_memory/{listops}"] = spaces.min(axis=0)
    if end is not None and (linear := of(ASSOCIATIVE, ("lightnet+both", "linear+both"))) is not None:
        measured[f"long_memory/lightnet-recalls-more-than-linear{end}"] = linear[0] - linear[1]
    return measured


def plot(result: StoredResult) -> Figure:
    """Accuracy against updates: a panel per task, a colour per model."""
    from matplotlib import pyplot as plt

    tasks, models = result.config["task_names"], result.config["models"]
    table = result.tables["models"]
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(1.5 + 3 * len(tasks), 3.4), layout="constrained", sharey=True, squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        curves = {name: result.series[f"{task}, {name}"] for name in models}
        draw_curves(axis, curves, table["chance"][table["task"].index(task)], colour)
        axis.set_title(task)
    axes[0, 0].set_ylabel("answers told, %")
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
