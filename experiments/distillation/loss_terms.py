"""What carries a loss: how much of it should be labels, and which half of DKD gives the gain.

Left, the paper's Figure 1a on digits: w CE + (1 - w) times Hinton's soft term, half of both correlations of DIST, or
PLD, which has the labels in it already and gets no more of them in the paper. Right, the ablation of DKD: the two terms
that Hinton's loss consists of, that of the label's class and that of the others, each with and without the other. All
have the temperature 4 that is published for CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.distillation.digits import DigitsConfig, FitConfig
from experiments.distillation.objectives import Objective, labels_only, of_logits
from experiments.distillation.tables import cell_columns, difference, draw_cells, draw_curve, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from experiments.distillation.networks import Outputs

ABOUT = About(
    paper="PLD (arXiv 2506.12542); DKD (arXiv 2203.08679)",
    source="Figure 1a of PLD; the ablation of DKD's terms, on digits (ours)",
    minutes={"smoke": 0.2, "cpu": 2},
)
LOSSES = ("hinton", "dist", "pld")


@dataclass(frozen=True)
class Config(DigitsConfig):
    """The weights and the temperature."""

    weights: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
    """Of the cross-entropy; 0.1 and 0.9 are what the claim is about."""
    losses: tuple[str, ...] = LOSSES
    """What the cross-entropy is mixed with, Hinton's soft term among them."""
    terms: tuple[tuple[float, float], ...] = ((0, 0), (1, 0), (0, 1), (1, 1), (0, 8), (1, 8))
    """Weights of DKD's term of the label's class and of that of the others; (0, 0) is cross-entropy alone."""
    temperature: float = 4.0
    """Of all losses."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for weight in self.weights:
            require("weights", weight, 0, 1)
        if not {"hinton"} <= set(self.losses) <= set(LOSSES):
            raise ValueError(f"losses: got {self.losses}, expected hinton and any of {', '.join(LOSSES[1:])}")
        if not {0.1, 0.9} <= set(self.weights):
            raise ValueError(f"weights: got {self.weights}, expected 0.1 and 0.9 among them")
        if not {(1, 0), (0, 1)} <= set(self.terms):
            raise ValueError(f"terms: got {self.terms}, expected (1, 0) and (0, 1) among them")
        if self.temperature <= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected above 0")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teacher="mlp-8",
        weights=(0.1, 0.9),
        losses=("hinton",),
        terms=((1, 0), (0, 1)),
        teacher_fit=FitConfig(steps=3),
        fit=FitConfig(steps=3),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/pld-ce-weight-sweep",
        "test accuracy with weight 0.1 of the cross-entropy minus with 0.9, smaller of Hinton's loss and DIST, "
        "percentage points",
        "above",
        0.0,
    ),
    Claim(
        "distillation/dkd-nontarget-carries",
        "test accuracy with the term of the other classes alone minus with that of the label's class alone, percentage "
        "points",
        "above",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train students with every weight, and with every pair of terms."""
    from experiments.distillation.students import prepared
    from experiments.runs import record_data

    teachers, students = prepared(config)
    data = {"digits": students.parts.sha256}
    record_data(run_dir, data)
    sweep = {}
    for loss in config.losses:
        # The weight is what each student is called with in the place of a temperature, so that one program has all.
        one = Objective(partial(weighted, loss=loss, at=config.temperature), "")
        measured = students.distil(one, teachers, config.weights)["test"]
        for place, weight in enumerate(config.weights):
            sweep[f"{loss}, {weight:g}"] = {cell: values[place] for cell, values in measured.items()}
    variants = {
        f"alpha {alpha:g}, beta {beta:g}": (
            Objective(partial(of_logits, name="dkd", alpha=alpha, beta=beta), ""),
            config.temperature,
        )
        for alpha, beta in config.terms
    }
    terms = students.compare(variants, teachers)
    tables = {
        "weights": cell_columns(sweep),
        "weights_seeds": seed_columns(sweep, config.seeds),
        "terms": cell_columns(terms),
        "terms_seeds": seed_columns(terms, config.seeds),
    }
    return Result(measured=_measured(sweep, terms), tables=tables, data=data)


def weighted(s: Outputs, t: Outputs, y: jax.Array, weight: Any, *, loss: str, at: float) -> jax.Array:
    """w CE + (1 - w) times what a loss has of the teacher."""
    import kd

    labels = labels_only(s, t, y, at)
    soft = {
        "hinton": lambda: kd.hinton(s.logits, t.logits, y, temperature=at, ce_weight=0.0, kd_weight=1.0),
        "dist": lambda: kd.dist(s.logits, t.logits, y, temperature=at, beta=0.5, gamma=0.5, ce_weight=0.0),
        "pld": lambda: kd.pld(s.logits, t.logits, y, temperature=at),
    }[loss]()
    return weight * labels + (1 - weight) * soft


def _measured(sweep: Mapping[str, Mapping[str, Any]], terms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    others, label = (terms[f"alpha {name}"]["accuracy"] for name in ("0, beta 1", "1, beta 0"))
    measured = {"distillation/dkd-nontarget-carries": difference(others, label)}
    if "dist, 0.1" in sweep:
        falls = [
            difference(*(sweep[f"{loss}, {w}"]["accuracy"] for w in ("0.1", "0.9"))) for loss in ("hinton", "dist")
        ]
        measured["distillation/pld-ce-weight-sweep"] = np.min(falls, axis=0)
    return measured


def plot(result: StoredResult) -> Figure:
    """Left: accuracy against the weight of the cross-entropy. Right: accuracy with each pair of DKD's terms."""
    from matplotlib import pyplot as plt

    weights, seeds = result.config["weights"], len(result.seeds)
    values = np.array(result.tables["weights_seeds"]["accuracy"]).reshape(-1, len(weights), seeds)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for loss, each in zip(result.config["losses"], values, strict=True):
        draw_curve(axes[0], weights, each, loss)
    axes[0].set(xlabel="weight of the cross-entropy", ylabel="test accuracy, %")
    axes[0].legend(fontsize=8)
    draw_cells(axes[1], result.tables["terms"], "accuracy")
    axes[1].set(xlabel="test accuracy, %")
    return figure
