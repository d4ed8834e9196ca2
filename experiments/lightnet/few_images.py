"""Positions where images are few: LightNet with both encodings, either, and none, trained on 200 digits.

On `lightnet/classification` both encodings and MD-TPE alone cannot be told apart: five seeds, 1,297 training images and
500 test images, of which each model misses about fifteen. Here 200 images are trained on, the other 1,597 are tested
on, and each variant has twenty seeds. The models and the recipe are those of `lightnet/classification`, but for 500
updates instead of 1,500; nothing was tried before the claims were written. All seeds have the same 200 images, so that
intervals are about initial values, order and augmentation, not about the choice of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.digit_classification import standardised_parts
from experiments.lightnet import classification
from experiments.results import About, Claim, Result, StoredResult
from experiments.statistics import paired_differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="ablation of positions, on few digits",
    minutes={"smoke": 0.2, "cpu": 13},
)
POSITIONS = ("both", "tpe", "lrpe", "none")
PAIRS = (("both", "tpe"), ("both", "lrpe"), ("tpe", "none"), ("lrpe", "none"))
NAMES = {"both": "both encodings", "tpe": "MD-TPE alone", "lrpe": "MD-LRPE alone", "none": "no encoding"}


def _few(images: classification.Config, steps: int) -> classification.Config:
    return replace(images, test_images=1597, train=replace(images.train, steps=steps))


@dataclass(frozen=True)
class Config(results.Config):
    """The positions to compare, and the model."""

    seeds: tuple[int, ...] = tuple(range(20))
    """One model with each kind of positions per seed, trained together."""
    positions: tuple[str, ...] = POSITIONS
    """See `experiments.mixers`."""
    images: classification.Config = field(default_factory=lambda: _few(classification.Config(), 500))
    """The model, the images and the training; its seeds and variants are not used."""

    def __post_init__(self) -> None:
        """Check the names."""
        super().__post_init__()
        unknown = sorted(set(self.positions) - set(POSITIONS))
        if unknown or not self.positions or len(set(self.positions)) < len(self.positions):
            raise ValueError(f"positions: got {self.positions}, expected some of {', '.join(POSITIONS)}, each once")


PRESETS = {
    "smoke": Config(seeds=(0,), positions=("none",), images=_few(classification.PRESETS["smoke"], 2)),
    "cpu": Config(),
}

CLAIMS = tuple(
    Claim(
        f"lightnet/R4-few-images-{more}-over-{less}",
        f"200 training images, test accuracy: {NAMES[more]} minus {NAMES[less]}, percentage points",
        "above",
        0.0,
        kind="ours",
    )
    for more, less in PAIRS
)


def run(config: Config, run_dir: Path) -> Result:
    """Train the models with each kind of positions."""
    from experiments.runs import record_data

    train, test, sha256 = standardised_parts(config.images.test_images)
    data = {"digits": sha256}
    record_data(run_dir, data)
    rows: dict[str, list] = {"positions": [], "seed": [], "accuracy": [], "parameters": [], "seconds": []}
    for positions in config.positions:
        variant = ("lightnet", positions, "shared")
        found = classification.train_variant(config.images, variant, config.seeds, train, test, run_dir)
        for seed, accuracy in zip(config.seeds, found.accuracies, strict=True):
            row = (positions, seed, float(accuracy), found.parameters, found.seconds)
            for column, entry in zip(rows.values(), row, strict=True):
                column.append(entry)
    return Result(measured=measured(rows), tables={"models": rows}, data=data)


def measured(rows: Mapping[str, list]) -> dict[str, Any]:
    """Differences of accuracies seed by seed, of those pairs of which both were trained.

    Args:
        rows: columns "positions" and "accuracy", the seeds of each in the same order.

    Returns:
        Claim -> one value per seed.

    Example:
        >>> measured({"positions": ["both", "tpe"], "accuracy": [90.0, 88.5]})
        {'lightnet/R4-few-images-both-over-tpe': [1.5]}
    """
    of: dict[str, list[float]] = {}
    for positions, accuracy in zip(rows["positions"], rows["accuracy"], strict=True):
        of.setdefault(positions, []).append(accuracy)
    return {
        f"lightnet/R4-few-images-{more}-over-{less}": paired_differences(of[more], of[less])
        for more, less in PAIRS
        if {more, less} <= of.keys()
    }


def plot(result: StoredResult) -> Figure:
    """Test accuracy, a dot per seed and a bar at the mean."""
    from matplotlib import pyplot as plt

    table = result.tables["models"]
    names = list(dict.fromkeys(table["positions"]))
    figure, axis = plt.subplots(figsize=(5.5, 1 + 0.4 * len(names)), layout="constrained")
    for row, name in enumerate(names):
        values = [a for a, of in zip(table["accuracy"], table["positions"], strict=True) if of == name]
        axis.plot(values, [row] * len(values), "o", color="#0072B2", markersize=4, alpha=0.5)
        axis.plot(np.mean(values), row, "|", color="black", markersize=14)
    axis.set_yticks(range(len(names)), [NAMES[name] for name in names])
    axis.set_xlabel("test accuracy, %, of models trained on 200 images")
    axis.grid(axis="x", color="0.9")
    axis.invert_yaxis()
    return figure
