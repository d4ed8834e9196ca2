"""SinKD's transport on digits: over the batch or within a sample, by batch size and weights, with and without KD.

The transport of SinKD is between the outputs of a batch; the step before it in the paper is one between the classes of
each sample. Both are added, as means over the batch with weight 0.8, to Hinton's loss at one temperature, and the
former for batches and entropic weights of several sizes too; Hinton's loss alone is there for every batch size, since
batches matter without transport as well. Whether transport replaces the teacher's probabilities is asked with
cross-entropy and weights of several sizes; the released one, 0.0008 of a sum over 16 or 32 samples, is about the
smallest of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.distillation.digits import DigitsConfig, FitConfig
from experiments.distillation.objectives import OBJECTIVES, TRANSPORT_WEIGHT, Objective
from experiments.distillation.tables import cell_columns, difference, draw_cells, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from experiments.distillation.networks import Outputs

ABOUT = About(
    paper="Sinkhorn Distance Minimization for Knowledge Distillation, SinKD (arXiv 2402.17110)",
    source="ablations, on digits (ours)",
    minutes={"smoke": 0.2, "cpu": 5},
)


@dataclass(frozen=True)
class Config(DigitsConfig):
    """Batches, entropic weights and weights of the transport."""

    batches: tuple[int, ...] = (8, 16, 32)
    """Further batch sizes, with as many updates."""
    entropies: tuple[float, ...] = (0.03, 0.3, 1.0)
    """Further entropic weights than 0.1."""
    weights: tuple[float, ...] = (0.02, 0.1, 0.8, 4.0)
    """Of the transport beside cross-entropy."""
    temperature: float = 8.0
    """Of Hinton's loss; the transport's is 2, as released."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for batch in self.batches:
            require("batches", batch, 2)
        for name in ("entropies", "weights"):
            if any(value <= 0 for value in getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected numbers above 0")
        if not self.weights:
            raise ValueError("weights: got none, expected at least one")
        if self.temperature <= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected above 0")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teacher="mlp-8",
        batches=(),
        entropies=(),
        weights=(0.8,),
        teacher_fit=FitConfig(steps=3),
        fit=FitConfig(steps=3, batch_size=8),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/sinkd-batchwise-better",
        "test accuracy of Hinton's loss with transport over the batch minus with transport within a sample, percentage "
        "points",
        "above",
        0.0,
    ),
    Claim(
        "distillation/sinkd-digits-labels",
        "test accuracy of cross-entropy with transport minus cross-entropy alone, largest over the weights, percentage "
        "points",
        "below",
        0.5,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train the students of every variant."""
    from experiments.distillation.students import prepared
    from experiments.runs import record_data

    teachers, students = prepared(config)
    data = {"digits": students.parts.sha256}
    record_data(run_dir, data)
    at = config.temperature
    found = students.compare({name: (one, at) for name, one in objectives(config).items()}, teachers)
    pair = {"KD": (OBJECTIVES["hinton"], at), "KD + batch-wise": (OBJECTIVES["sinkd"], at)}
    for batch in config.batches:
        smaller = replace(students, config=replace(config.fit, batch_size=batch))
        found |= {f"{name}, batch {batch}": each for name, each in smaller.compare(pair, teachers).items()}
    tables = {"cells": cell_columns(found), "seeds": seed_columns(found, config.seeds)}
    return Result(measured=_measured(config, found), tables=tables, data=data)


def objectives(config: Config) -> dict[str, Objective]:
    """What is compared at the usual batch size, by name.

    Args:
        config: the weights.

    Returns:
        Name -> objective.

    Example:
        >>> list(objectives(PRESETS["smoke"]))
        ['CE', 'KD', 'KD + batch-wise', 'KD + sample-wise', 'KD + debiased', 'CE + 0.8']
    """
    beside = {
        "KD + batch-wise": partial(added, base="hinton"),
        "KD + sample-wise": partial(added, base="hinton", form="sinkd_sample_wise"),
        "KD + debiased": partial(added, base="hinton", debiased=True),
        **{f"KD + batch-wise, eps {eps:g}": partial(added, base="hinton", eps=eps) for eps in config.entropies},
        **{f"CE + {weight:g}": partial(added, base="ce", weight=weight) for weight in config.weights},
    }
    plain = {"CE": OBJECTIVES["ce"], "KD": OBJECTIVES["hinton"]}
    return {**plain, **{name: Objective(loss, name) for name, loss in beside.items()}}


def added(
    s: Outputs,
    t: Outputs,
    y: jax.Array,
    temperature: Any,
    *,
    base: str,
    form: str = "sinkd",
    weight: float = TRANSPORT_WEIGHT,
    **arguments: Any,
) -> jax.Array:
    """A loss of the table and a transport, the mean over the batch, at its own temperature."""
    import kd

    cost = getattr(kd, form)(s.logits, t.logits, **arguments)
    return OBJECTIVES[base].loss(s, t, y, temperature) + weight * cost / len(y)


def _measured(config: Config, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    accuracy = {name: np.asarray(each["accuracy"]) for name, each in found.items()}
    beside = [difference(accuracy[f"CE + {weight:g}"], accuracy["CE"]) for weight in config.weights]
    return {
        "distillation/sinkd-batchwise-better": difference(accuracy["KD + batch-wise"], accuracy["KD + sample-wise"]),
        "distillation/sinkd-digits-labels": np.max(beside, axis=0),
    }


def plot(result: StoredResult) -> Figure:
    """Accuracy and calibration error of every variant, mean and 95 % interval."""
    from matplotlib import pyplot as plt

    cells = result.tables["cells"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.8 + 0.24 * len(cells["student"])), layout="constrained")
    for axis, measure in zip(axes, ("accuracy", "calibration error"), strict=True):
        draw_cells(axis, cells, measure)
    axes[0].set(xlabel="test accuracy, %")
    axes[1].set(xlabel="expected calibration error")
    return figure
