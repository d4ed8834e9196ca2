"""A long-tailed mix of lengths on eight devices: groups that fit the sequences, against one split for all.

A batch has many short sequences and a few that only fit if all devices share them. Static scattering gives every group
as many devices as the longest sequence needs, or more if that is predicted to be faster; the length-aware assigner
chooses groups and sequences of every micro-batch (`assignment`). Both are the same mixed-integer program with the same
cost model, buckets and micro-batches, and differ in the sizes that groups may have.

**What is measured**: every group of every plan executes its sequences on virtual devices, forward and backward, with
ring attention. These devices share this machine's cores; the time of a group is its CPU time over its devices, and a
step is composed of the slowest groups of its micro-batches (`groups`). So a hop of the ring costs what handing over to
another thread costs, not what a network does, and summing gradients over groups, which both need, is left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="FlexSP (arXiv 2412.01523)",
    source="abstract",
    minutes={"smoke": 0.2, "cpu": 4.0},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The lengths, the devices, and the model that is timed."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One batch each."""
    sequences: int = 64
    """Of a batch."""
    median: int = 256
    """Tokens of half of the sequences, of a log-normal distribution."""
    spread: float = 1.2
    """Standard deviation of the logarithm of the length."""
    buckets: int = 8
    """Lengths that sequences are padded to."""
    devices: int = 8
    """Virtual ones, a power of two."""
    capacity: int = 512
    """Tokens that a device can hold; all of them together can hold the longest sequence."""
    width: int = 128
    """Channels of the model."""
    num_heads: int = 4
    """Heads of the model."""
    calibrations: int = 3
    """Times that each single sequence is timed, of which the median counts."""
    repeats: int = 1
    """Times that each group of a plan is."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("sequences", "median", "buckets", "devices", "capacity", "width", "num_heads", "calibrations"):
            require(name, getattr(self, name), 1)
        require("repeats", self.repeats, 1)
        require("spread", self.spread, 0)
        if self.devices & (self.devices - 1):  # groups are, and one of them has to be all devices
            raise ValueError(f"devices: got {self.devices}, expected a power of two")


PRESETS = {
    "smoke": Config(
        seeds=(0,), sequences=4, median=8, buckets=1, devices=2, capacity=16, width=8, num_heads=1, calibrations=1
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "sequence_parallelism/length-aware-speedup",
        "measured time of a step with the best static split over that with groups that fit the lengths",
        "above",
        1.98,
    ),
    Claim(
        "sequence_parallelism/length-aware-faster",
        "the same, for whether it is worth it",
        "above",
        1.1,
        kind="ours",
    ),
    Claim(
        "sequence_parallelism/length-aware-predicted",
        "largest relative difference of the predicted times of a batch's two steps from the measured ones",
        "below",
        0.2,
        kind="ours",
    ),
    Claim(
        "sequence_parallelism/length-aware-never-slower",
        "predicted time of a step with groups that fit the lengths over that with the best static split",
        "below",
        1.0,
        kind="control",
    ),
)


def batch(config: Config, seed: int) -> list[int]:
    """Lengths of a batch: log-normal, cut off at what all devices can hold, in multiples of the number of devices."""
    random = np.random.default_rng(seed)
    drawn = np.exp(np.log(config.median) + config.spread * random.standard_normal(config.sequences))
    most = config.capacity * config.devices
    rounded = np.ceil(np.minimum(drawn, most) / config.devices).astype(int) * config.devices
    return np.minimum(rounded, most).tolist()


def run(config: Config, run_dir: Path) -> Result:
    """Draw batches, and have them planned, executed and timed in a process with virtual devices."""
    from experiments.sequence_parallelism.assignment import bucket_limits
    from experiments.sequence_parallelism.groups import compared
    from experiments.virtual_devices import on_virtual_devices

    drawn = {seed: batch(config, seed) for seed in config.seeds}
    limits = bucket_limits([length for lengths in drawn.values() for length in lengths], config.buckets)
    padded = [[limits[int(np.searchsorted(limits, length))] for length in lengths] for lengths in drawn.values()]
    given = {**asdict(config), "limits": limits, "batches": padded}
    found = on_virtual_devices(config.devices, compared, given)
    table: dict[str, list[Any]] = {"seed": list(config.seeds), "longest": [max(lengths) for lengths in drawn.values()]}
    table["tokens"] = [sum(lengths) for lengths in drawn.values()]
    table["padded"] = [sum(lengths) for lengths in padded]
    for name in ("static degree", "static predicted", "static measured", "aware predicted", "aware measured"):
        table[name] = [step[name] for step in found["steps"]]
    tables = {"steps": table, "calibration": found["calibration"], "groups": _groups(config, found["steps"])}
    tables["cost"] = {"part": list(found["cost"]), "value": list(found["cost"].values())}
    lengths = {f"{seed}": np.array(lengths) for seed, lengths in drawn.items()}
    return Result(_measured(table), tables, series={"lengths": lengths})


def _groups(config: Config, steps: list[dict[str, Any]]) -> dict[str, list]:
    """One row per group of a plan."""
    table: dict[str, list] = {"seed": [], "plan": [], "micro-batch": [], "degree": [], "sequences": [], "longest": []}
    for seed, step in zip(config.seeds, steps, strict=True):
        for plan in ("static", "aware"):
            for place, part in enumerate(step[f"{plan} groups"]):
                for degree, lengths in part:
                    row = (seed, plan, place, degree, len(lengths), max(lengths))
                    for column, entry in zip(table.values(), row, strict=True):
                        column.append(entry)
    return table


def _measured(table: dict[str, list]) -> dict[str, Any]:
    found = {
        f"{plan} {kind}": np.array(table[f"{plan} {kind}"])
        for plan in ("static", "aware")
        for kind in ("predicted", "measured")
    }
    speedup = found["static measured"] / found["aware measured"]
    errors = [abs(found[f"{plan} predicted"] / found[f"{plan} measured"] - 1) for plan in ("static", "aware")]
    return {
        "sequence_parallelism/length-aware-speedup": speedup.tolist(),
        "sequence_parallelism/length-aware-faster": speedup.tolist(),
        "sequence_parallelism/length-aware-predicted": np.maximum(*errors).tolist(),
        "sequence_parallelism/length-aware-never-slower": (
            found["aware predicted"] / found["static predicted"]
        ).tolist(),
    }


def plot(result: StoredResult) -> Figure:
    """Lengths of all batches, and predicted and measured times of their steps."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    lengths = np.concatenate(list(result.series["lengths"].values()))
    left.hist(lengths, bins=np.geomspace(lengths.min(), lengths.max() + 1, 20))
    left.set(xscale="log", xlabel="tokens of a sequence", ylabel="sequences")
    table, places = result.tables["steps"], np.arange(len(result.seeds))
    for offset, plan in ((-0.2, "static"), (0.2, "aware")):
        right.bar(places + offset, table[f"{plan} measured"], 0.36, label=f"{plan}, measured")
        right.plot(places + offset, table[f"{plan} predicted"], "k_", markersize=12)
    right.set_xticks(places, [f"{seed}" for seed in result.seeds])
    right.set(xlabel="batch (lines: predicted)", ylabel="seconds of a step")
    right.legend(fontsize="small")
    return figure
