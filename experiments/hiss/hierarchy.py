"""Hierarchies of four kinds of levels against flat models, on generated sensors, with and without a filter.

The table has the form of the published one: every lower level of LSTM, S4 and Mamba under every upper level of these
and a causal transformer, and the four flat models, here with the layers of two levels, so that a hierarchy of one kind
and the flat model of that kind have the same parameters. A flat model reads 50 samples per second and is asked five
times per second: at the first sample of each chunk, as in the released code, or at the last, where it has seen what a
hierarchy has seen. The target is the velocity at the first sample of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.hiss.comparison import SMOKE, SensorConfig, best_of, check_names, gain, train_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="HiSS (arXiv 2402.10211)",
    source="results table, on generated sensors",
    minutes={"smoke": 0.2, "cpu": 13},
)
LOW, HIGH = ("lstm", "s4", "mamba"), ("transformer", "lstm", "s4", "mamba")
HIERARCHIES = tuple(f"{high} over {low}" for high in HIGH for low in LOW)
FLAT_KINDS = ("transformer", "lstm", "s4", "mamba")
FLAT_START, FLAT_END = ({kind: f"flat {kind} {at}" for kind in FLAT_KINDS} for at in ("start", "end"))
BEST = "mamba over s4"
FILTERED = (BEST, FLAT_START["mamba"], FLAT_END["mamba"])


@dataclass(frozen=True)
class Config(SensorConfig):
    """The models of the table and of the filter."""

    models: tuple[str, ...] = (*HIERARCHIES, *FLAT_START.values(), *FLAT_END.values())
    """Which are trained."""
    filtered: tuple[str, ...] = FILTERED
    """Which are trained behind the filter too."""
    recordings: int = 256
    """Training recordings."""
    cutoff: float = 5.0
    """Of the filter, Hz."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        check_names(self.models)
        if self.filtered:
            check_names(self.filtered, "filtered")
        require("recordings", self.recordings, self.train.batch_size)
        if not 0 < self.cutoff < self.sensors.rate / 2:
            raise ValueError(f"cutoff: got {self.cutoff}, expected a frequency below half of the rate")


PRESETS = {
    "smoke": Config(models=("transformer over transformer",), filtered=(), recordings=2, **SMOKE),
    "cpu": Config(),
}

_GAIN = "1 - its test MSE / that of"
CLAIMS = (
    Claim("hiss/abstract-filtering", f"Mamba over S4 behind a low-pass filter: {_GAIN} the flat Mamba", "above", 0.0),
    Claim(
        "hiss/filtering-against-aligned-flat",
        f"Mamba over S4 behind a low-pass filter: {_GAIN} the flat Mamba read at the chunk's end",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "hiss/unfair-flat-offset",
        "flat models read at a chunk's start: test MSE less that at its end, the smallest difference of four kinds",
        "above",
        0.0,
        kind="ours",
    ),
    *(
        Claim(
            f"hiss/unfair-flat-offset-{kind}",
            f"flat {kind} read at a chunk's start: test MSE less that at its end",
            "above",
            0.0,
            kind="ours",
        )
        for kind in FLAT_KINDS
    ),
    Claim(
        "hiss/synthetic-23-percent",
        f"the best hierarchy: {_GAIN} the best flat model, both by their mean over seeds, as released",
        "above",
        0.23,
        kind="ours",
    ),
    Claim(
        "hiss/synthetic-against-best-aligned-flat",
        f"the best hierarchy: {_GAIN} the best flat model read at the chunk's end, both by their mean over seeds",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "hiss/synthetic-low-level-s4",
        "test MSE over LSTM or Mamba as the lower level less that over S4, the smallest of four upper levels",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "hiss/synthetic-flat-ordering",
        "flat models as released, MSE: the smaller of (LSTM or S4) - Mamba, and of transformer - (one of the others)",
        "above",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed."""
    settings = [(name, 0.0) for name in config.models] + [(name, config.cutoff) for name in config.filtered]
    rows: dict[str, list] = {name: [] for name in ("model", "cutoff", "seed", "mse", "parameters", "seconds")}
    errors: dict[tuple[str, bool], np.ndarray] = {}
    for name, cutoff in settings:
        folder = run_dir / "training" / f"{name.replace(' ', '-')}{'-filtered' if cutoff else ''}"
        found = train_model(config, name, config.recordings, folder, cutoff)
        errors[name, cutoff > 0] = found.errors
        for seed, error in zip(config.seeds, found.errors, strict=True):
            row = (name, cutoff, seed, float(error), found.parameters, found.seconds)
            for column, entry in zip(rows.values(), row, strict=True):
                column.append(entry)
    return Result(measured=_measured(errors), tables={"errors": rows})


def _measured(errors: Mapping[tuple[str, bool], np.ndarray]) -> dict[str, Any]:
    """The claims of those models that are there."""
    plain = {name: values for (name, filtered), values in errors.items() if not filtered}
    return {**_behind_a_filter(errors), **_of_the_table(plain)}


def _behind_a_filter(errors: Mapping[tuple[str, bool], np.ndarray]) -> dict[str, Any]:
    behind = {name: values for (name, filtered), values in errors.items() if filtered}
    against = {"abstract-filtering": FLAT_START["mamba"], "filtering-against-aligned-flat": FLAT_END["mamba"]}
    return {
        f"hiss/{claim}": gain(behind[BEST], behind[flat])
        for claim, flat in against.items()
        if {BEST, flat} <= behind.keys()
    }


def _of_the_table(errors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    kinds = [kind for kind in FLAT_KINDS if {FLAT_START[kind], FLAT_END[kind]} <= errors.keys()]
    later = {kind: errors[FLAT_START[kind]] - errors[FLAT_END[kind]] for kind in kinds}
    found = {f"hiss/unfair-flat-offset-{kind}": values for kind, values in later.items()}
    if len(kinds) < len(FLAT_KINDS) or not set(HIERARCHIES) <= errors.keys():
        return found
    best = best_of(errors, HIERARCHIES)
    start = {kind: errors[name] for kind, name in FLAT_START.items()}
    worse = [errors[f"{high} over {low}"] - errors[f"{high} over s4"] for high in HIGH for low in ("lstm", "mamba")]
    mamba_first = np.minimum(start["lstm"], start["s4"]) - start["mamba"]
    transformer_last = start["transformer"] - np.max([start[kind] for kind in ("lstm", "s4", "mamba")], axis=0)
    return found | {
        "hiss/unfair-flat-offset": np.min(list(later.values()), axis=0),
        "hiss/synthetic-23-percent": gain(best, best_of(errors, tuple(FLAT_START.values()))),
        "hiss/synthetic-against-best-aligned-flat": gain(best, best_of(errors, tuple(FLAT_END.values()))),
        "hiss/synthetic-low-level-s4": np.min(worse, axis=0),
        "hiss/synthetic-flat-ordering": np.minimum(mamba_first, transformer_last),
    }


def plot(result: StoredResult) -> Figure:
    """Test errors: a dot per seed and a bar at the mean; the released flat models are the grey line's best."""
    from matplotlib import pyplot as plt

    table = result.table("errors")
    keys = list(dict.fromkeys(zip(table["model"], table["cutoff"], strict=True)))
    entries = list(zip(table["model"], table["cutoff"], table["mse"], strict=True))
    values = {key: [mse for name, cutoff, mse in entries if (name, cutoff) == key] for key in keys}
    figure, axis = plt.subplots(figsize=(8, 0.6 + 0.24 * len(keys)), layout="constrained")
    for height, key in enumerate(reversed(keys)):
        colour = "#0072B2" if " over " in key[0] else "#D55E00" if key[0].endswith("start") else "#009E73"
        axis.plot(values[key], [height] * len(values[key]), "o", markersize=4, color=colour, markerfacecolor="none")
        axis.plot([float(np.mean(values[key]))] * 2, [height - 0.3, height + 0.3], color=colour, linewidth=2)
    names = [f"{name}, filtered" if cutoff else name for name, cutoff in reversed(keys)]
    axis.set(yticks=range(len(keys)), xlabel="test MSE (the velocity has variance 1)")
    axis.set_yticklabels(names, fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    return figure
