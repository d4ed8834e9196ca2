"""Largest batch and longest sequence of a BERT on 1 to 64 devices: sequences split over them, and heads.

**Planned, not measured**: memory is counted in the step's own program (`memory`), in float32 without rematerialised
products, and held against what the compiler of this machine plans for the same steps on virtual devices. A device has
the 16 GiB of the paper's P100. Tensor parallelism stops at as many devices as there are heads.

"ring, scores kept" is the paper's ring self-attention, whose scores of the local queries with all keys stay until the
gradient; it is counted as softmax attention whose arrays are all split over the sequence. "ring" computes scores again
(`lightnet.mixers.ring`), "lightnet" is LightNet's mixer without an order, and "linformer" the sparse attention that the
paper reaches its longest sequence with. Batch sizes, length 512 and Linformer's rank are from memory of the paper.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import results
from experiments.errors import UserError
from experiments.results import About, Claim, Result, StoredResult
from experiments.sequence_parallelism.compiled import Point, planned
from experiments.sequence_parallelism.memory import METHODS, Shape, largest, step_of
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Sequence Parallelism: Long Sequence Training from System Perspective (arXiv 2105.13120)",
    source="abstract",
    minutes={"smoke": 0.1, "cpu": 2.0},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The model, the devices, and what is compiled for comparison."""

    seeds: tuple[int, ...] = (0,)
    """Nothing is random."""
    shape: Shape = field(default_factory=Shape)
    """Of the model."""
    devices: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 32, 64)
    """Numbers of devices, 1 among them."""
    gibibytes: float = 16.0
    """Memory of a device."""
    length: int = 512
    """Tokens, where the batch grows."""
    batch: int = 64
    """Examples, where the length grows."""
    sparse_batch: int = 4
    """Examples, where the length of sparse attention grows."""
    compiled_layers: int = 2
    """Blocks of the models that are compiled; 0 compiles none."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("gibibytes", "length", "batch", "sparse_batch"):
            require(name, getattr(self, name), 1)
        if not self.devices or min(self.devices) != 1:  # with which the others are compared
            raise ValueError(f"devices: got {self.devices}, expected 1 and larger numbers")


PRESETS = {
    "smoke": Config(
        shape=Shape(num_layers=1, width=24, num_heads=12, vocab_size=60, rank=4), devices=(1, 64), compiled_layers=0
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "sequence_parallelism/ring-batch",
        "largest batch at length 512 of the ring with kept scores on the most devices over that of tensor parallelism",
        "within",
        13.7,
        2.74,
        deterministic=True,
    ),
    Claim(
        "sequence_parallelism/ring-length",
        "longest sequence at batch 64 of the ring with kept scores on the most devices over that of tensor parallelism",
        "within",
        3.0,
        0.6,
        deterministic=True,
    ),
    Claim(
        "sequence_parallelism/sparse-length",
        "tokens of the longest sequence of Linformer on the most devices, batch 4",
        "above",
        114e3,
        deterministic=True,
    ),
    Claim(
        "sequence_parallelism/sparse-length-ratio",
        "the same over the longest sequence of Linformer on one device",
        "above",
        27.0,
        deterministic=True,
    ),
    Claim(
        "sequence_parallelism/ring-batch-of-data-parallelism",
        "largest batch of the ring with kept scores on the most devices over that of as many copies of the model",
        "within",
        1.0,
        0.05,
        kind="ours",
        deterministic=True,
    ),
    Claim(
        "sequence_parallelism/ring-without-scores",
        "longest sequence of the ring that computes scores again over that of the ring that keeps them",
        "above",
        2.0,
        kind="ours",
        deterministic=True,
    ),
    Claim(
        "sequence_parallelism/lightnet-length",
        "longest sequence of LightNet over that of the ring that computes scores again",
        "within",
        1.0,
        0.15,
        kind="ours",
        deterministic=True,
    ),
    Claim(
        "sequence_parallelism/counted-memory",
        "largest relative difference of counted memory from the compiler's",
        "below",
        0.1,
        kind="control",
        deterministic=True,
    ),
)


def split(method: str, devices: int, heads: int) -> dict[str, int]:
    """How a method uses devices: along "tensor" at most as many as divide the heads, the others idle.

    Args:
        method: of `memory.METHODS`.
        devices: there are.
        heads: of the model.

    Example:
        >>> split("tensor", 64, 12), split("ring", 64, 12)
        ({'tensor': 12}, {'sequence': 64})
    """
    if method == "tensor":
        return {"tensor": max(n for n in range(1, min(devices, heads) + 1) if heads % n == 0)}
    return {"sequence": devices}


def run(config: Config, run_dir: Path) -> Result:
    """Count what each method needs, find what just fits, and compile some steps."""
    table: dict[str, list] = {"method": [], "devices": [], "used": [], "batch": [], "length": [], "sparse batch": []}
    for method in METHODS:
        for devices in config.devices:
            used = split(method, devices, config.shape.num_heads)
            row = (method, devices, next(iter(used.values())), *sizes(config, method, used))
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
    if 0 in (*table["batch"], *table["length"], *table["sparse batch"]):
        raise UserError(f"gibibytes: got {config.gibibytes}, in which not every method has room for a token")
    tables = {"largest": table}
    measured = _measured(config, table)
    if config.compiled_layers:
        tables["compiled"] = compared(config)
        measured["sequence_parallelism/counted-memory"] = [max(abs(x) for x in tables["compiled"]["difference"])]
    return Result(measured, tables)


def sizes(config: Config, method: str, used: dict[str, int]) -> tuple[int, int, int]:
    """What just fits.

    Args:
        config: memory and sizes.
        method: of `memory.METHODS`.
        used: devices by axis.

    Returns:
        The largest batch at a length, and the longest sequences at the batch and at that for sparse attention.
    """
    step, there = step_of(method, config.shape), config.gibibytes * 2**30

    def longest(batch: int) -> int:
        return largest(lambda length: step.bytes(batch, length, **used) <= there)

    batch = largest(lambda size: step.bytes(size, config.length, **used) <= there)
    return batch, longest(config.batch), longest(config.sparse_batch)


def compared(config: Config) -> dict[str, list]:
    """Counted memory beside that of the compiler, for a model with fewer blocks and the same widths."""
    shape = dataclasses.replace(config.shape, num_layers=config.compiled_layers)
    points = [
        Point("tensor", shape, 16, 512),
        Point("tensor", shape, 16, 512, **split("tensor", 4, shape.num_heads)),
        Point("tensor", shape, 16, 512, tensor=shape.num_heads),
        Point("ring", shape, 16, 512, sequence=8),
        Point("ring", shape, 2, 8192, sequence=8),
        Point("lightnet", shape, 16, 512, sequence=8),
        Point("linformer", shape, 16, 512, sequence=8),
    ]
    counted = [step_of(p.method, shape).bytes(p.batch, p.length, p.tensor, p.sequence) for p in points]
    compiler = planned(points)
    return {
        "method": [point.method for point in points],
        "tensor": [point.tensor for point in points],
        "sequence": [point.sequence for point in points],
        "batch": [point.batch for point in points],
        "length": [point.length for point in points],
        "counted": counted,
        "compiler": compiler,
        "difference": [ours / theirs - 1 for ours, theirs in zip(counted, compiler, strict=True)],
    }


def _measured(config: Config, table: dict[str, list]) -> dict[str, Any]:
    def of(method: str, column: str, devices: int = max(config.devices)) -> float:
        rows = zip(table["method"], table["devices"], table[column], strict=True)
        return next(float(value) for name, count, value in rows if (name, count) == (method, devices))

    kept = "ring, scores kept"
    copies = max(config.devices) * of("tensor", "batch", 1)
    found = {
        "ring-batch": of(kept, "batch") / of("tensor", "batch"),
        "ring-length": of(kept, "length") / of("tensor", "length"),
        "sparse-length": of("linformer", "sparse batch"),
        "sparse-length-ratio": of("linformer", "sparse batch") / of("linformer", "sparse batch", 1),
        "ring-batch-of-data-parallelism": of(kept, "batch") / copies,
        "ring-without-scores": of("ring", "length") / of(kept, "length"),
        "lightnet-length": of("lightnet", "length") / of("ring", "length"),
    }
    return {f"sequence_parallelism/{name}": [value] for name, value in found.items()}


def plot(result: StoredResult) -> Figure:
    """Largest batch and longest sequence against the number of devices."""
    from matplotlib import pyplot as plt

    table = result.tables["largest"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    batch, length = result.config["batch"], result.config["length"]
    for axis, column, label in zip(
        axes,
        ("batch", "length"),
        (f"largest batch, {length} tokens", f"longest sequence, batch {batch}"),
        strict=True,
    ):
        for method in METHODS:
            rows = [i for i, name in enumerate(table["method"]) if name == method]
            axis.plot([table["devices"][i] for i in rows], [table[column][i] for i in rows], "o-", label=method)
        axis.set(xscale="log", yscale="log", xlabel="devices", ylabel=label)
        axis.set_xscale("log", base=2)
    axes[0].legend(fontsize="small")
    return figure
