"""How the gain of a hierarchy changes with the number of recordings, on generated sensors.

Mamba over Mamba against its layers without chunks, three models with the same parameters: a hierarchy, a flat model
read at the last sample of each chunk, which has seen as much, and one read at the first sample, as in the released
code. All are trained for the same number of updates, and judged where their error on validation recordings is smallest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments.hiss.comparison import SMOKE, SensorConfig, check_names, gain, recipe, train_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="HiSS (arXiv 2402.10211)",
    source="abstract: smaller data sets",
    minutes={"smoke": 0.2, "cpu": 9},
)
HIERARCHY, ALIGNED, RELEASED = "mamba over mamba", "flat mamba end", "flat mamba start"
FEW, ENOUGH = 96, 768


@dataclass(frozen=True)
class Config(SensorConfig):
    """The models and the numbers of recordings."""

    models: tuple[str, ...] = (HIERARCHY, ALIGNED, RELEASED)
    """Which are trained."""
    recordings: tuple[int, ...] = (24, FEW, ENOUGH)
    """Training recordings, ascending."""
    train: TrainConfig = field(default_factory=lambda: recipe(600, 50))
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        check_names(self.models)
        for count in self.recordings:
            require("recordings", count, self.train.batch_size)
        if not self.recordings or list(self.recordings) != sorted(set(self.recordings)):
            raise ValueError(f"recordings: got {self.recordings}, expected ascending numbers")


PRESETS = {
    "smoke": Config(models=("transformer over transformer",), recordings=(2,), **SMOKE),
    "cpu": Config(),
}

# In a trial of ours without filter, with other sensors, before this file was written.
_FOUND_BEFORE: tuple[tuple[int, str, Literal["above", "below"]], ...] = (
    (FEW, "aligned", "above"),
    (FEW, "released", "above"),
    (ENOUGH, "aligned", "below"),
    (ENOUGH, "released", "above"),
)
_GAIN = "gain, 1 - the hierarchy's test MSE / that of"
CLAIMS = (
    Claim(
        "hiss/abstract-small-data",
        f"{_GAIN} the flat model as released: with the fewest recordings less with the most",
        "above",
        0.0,
    ),
    Claim(
        "hiss/small-data-against-aligned-flat",
        f"{_GAIN} the flat model read at the chunk's end: with the fewest recordings less with the most",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "hiss/synthetic-against-aligned-flat",
        f"the smallest of the four claims below, each with its sign: {_GAIN} a flat model",
        "above",
        0.0,
        kind="ours",
    ),
    *(
        Claim(
            f"hiss/synthetic-{count}-{which}",
            f"{count} recordings: {_GAIN} the flat model, {which}",
            test,
            0.0,
            kind="ours",
        )
        for count, which, test in _FOUND_BEFORE
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed on every number of recordings."""
    rows: dict[str, list] = {name: [] for name in ("model", "recordings", "seed", "mse", "parameters", "seconds")}
    errors: dict[tuple[str, int], np.ndarray] = {}
    curves: dict[str, dict[str, np.ndarray]] = {}
    for count in config.recordings:
        for name in config.models:
            found = train_model(config, name, count, run_dir / "training" / f"{name.replace(' ', '-')}-{count}")
            errors[name, count] = found.errors
            fields = {"updates": found.updates, "validation": found.validation, "test": found.test}
            curves[f"{name}, {count} recordings"] = fields
            for seed, error in zip(config.seeds, found.errors, strict=True):
                row = (name, count, seed, float(error), found.parameters, found.seconds)
                for column, entry in zip(rows.values(), row, strict=True):
                    column.append(entry)
    return Result(measured=_measured(errors, config.recordings), tables={"errors": rows}, series=curves)


def _measured(errors: Mapping[tuple[str, int], np.ndarray], recordings: tuple[int, ...]) -> dict[str, Any]:
    """The claims of those models and numbers that are there."""
    if not {(name, count) for name in (HIERARCHY, ALIGNED, RELEASED) for count in recordings} <= errors.keys():
        return {}

    def gains(flat: str, count: int) -> np.ndarray:
        return gain(errors[HIERARCHY, count], errors[flat, count])

    found: dict[str, Any] = {}
    if len(recordings) > 1:
        few, most = recordings[0], recordings[-1]
        found["hiss/abstract-small-data"] = gains(RELEASED, few) - gains(RELEASED, most)
        found["hiss/small-data-against-aligned-flat"] = gains(ALIGNED, few) - gains(ALIGNED, most)
    if {FEW, ENOUGH} <= set(recordings):
        names = {"aligned": ALIGNED, "released": RELEASED}
        parts = {f"{count}-{name}": gains(flat, count) for count in (FEW, ENOUGH) for name, flat in names.items()}
        found |= {f"hiss/synthetic-{name}": values for name, values in parts.items()}
        signed = {**parts, f"{ENOUGH}-aligned": -parts[f"{ENOUGH}-aligned"]}
        found["hiss/synthetic-against-aligned-flat"] = np.min(list(signed.values()), axis=0)
    return found


def plot(result: StoredResult) -> Figure:
    """Left: test error against the number of recordings, a dot per seed. Right: validation error during training."""
    from matplotlib import pyplot as plt

    table = result.table("errors")
    colours = dict(zip(dict.fromkeys(table["model"]), ("#0072B2", "#009E73", "#D55E00"), strict=False))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, colour in colours.items():
        entries = zip(table["model"], table["recordings"], table["mse"], strict=True)
        counts, errors = np.array([(count, mse) for model, count, mse in entries if model == name]).T
        axes[0].plot(counts, errors, "o", markersize=4, color=colour, markerfacecolor="none")
        sizes = np.unique(counts)
        axes[0].plot(sizes, [errors[counts == size].mean() for size in sizes], color=colour, label=name)
    axes[0].set(xscale="log", xlabel="training recordings", ylabel="test MSE (the velocity has variance 1)")
    axes[0].legend(fontsize=8)
    for label, curve in result.series.items():
        name, _, count = label.partition(", ")
        style = ("-", "--", ":", "-.")[sorted({key.partition(", ")[2] for key in result.series}).index(count) % 4]
        axes[1].plot(curve["updates"], curve["validation"].mean(axis=0), style, color=colours[name], label=label)
    axes[1].set(xlabel="updates", ylabel="validation MSE, mean over seeds", ylim=(0, 1.5))
    axes[1].legend(fontsize=6)
    return figure
