"""What a layer costs to train: CPU time and memory of a pass forward and backward, over the length and the batch.

S4 says that it is as efficient as all that it is compared with; of these linear attention is here. The cost of both
grows with the length, not with its square: S4 is a convolution by Fourier transforms, linear attention has a state. One
mixer of each kind reads the same batch, with its projections and whatever it has beside its recurrence; S4 and its
relatives have the GLU of the published layers. Softmax attention, which forms all pairs, is beside them. The kernel of
S4 is made once for a batch, whose size is therefore varied too, for S4 and linear attention.

Programs take turns within a repetition, of which each seed is one. Memory is what the compiled program holds beside its
arguments and results, which is the same in every repetition.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import mixers, results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.scan_benchmark.measure import Program

ABOUT = About(
    paper="Efficiently Modeling Long Sequences with Structured State Spaces, S4 (arXiv 2111.00396)",
    source="abstract",
    minutes={"smoke": 0.1, "cpu": 5},
)
S4, LINEAR = "s4", "linear"
COLOURS = {S4: "#0072B2", "s4d": "#E69F00", "s5": "#56B4E9", LINEAR: "#999999", "softmax": "black"}


@dataclass(frozen=True)
class Config(results.Config):
    """The mixers, what they read, and how often that is timed."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each."""
    mixers: tuple[str, ...] = tuple(COLOURS)
    """Names, see `experiments.mixers`."""
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Tokens of a sequence; the claim is about 4,096."""
    batches: tuple[int, ...] = (2, 4, 8, 16)
    """Sequences; the first is read at all lengths by all mixers, the others at the last length by two."""
    width: int = 64
    """Channels."""
    heads: int = 4
    """Of attention."""
    calls: int = 3
    """Measured calls of a repetition, of which the median counts."""

    def __post_init__(self) -> None:
        """Check the names and the ranges."""
        super().__post_init__()
        for name in ("width", "heads", "calls"):
            require(name, getattr(self, name), 1)
        for name in ("lengths", "batches"):
            require(f"the smallest of {name}", min(getattr(self, name), default=0), 1)
        for name in self.mixers:
            mixers.check_model(name, "none", "mixers", "causal text")
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of the width, {self.width}")


PRESETS = {
    "smoke": Config(seeds=(0,), mixers=(LINEAR,), lengths=(3,), batches=(1,), width=4, heads=2, calls=1),
    "cpu": Config(),
}
CLAIMED_LENGTH = 4096
CLAIMED_BATCHES = {"s4-efficiency": 2, "s4-efficiency-16-rows": 16}
CLAIMS = (
    Claim(
        "long_memory/s4-efficiency",
        "4,096 tokens: S4 over linear attention, the larger of the ratios of CPU time and of memory",
        "below",
        1.25,  # "as efficient", read as this much more at most
    ),
    Claim(
        "long_memory/s4-efficiency-16-rows",
        "the same with 16 rows in place of 2, over which the kernel is made once",
        "below",
        1.25,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Time all mixers in turns, at every length and batch, in every repetition."""
    from experiments.scan_benchmark.measure import take_turns

    names = ("mixer", "batch", "length", "repetition", "cpu_ms", "wall_ms", "mebibytes")
    columns: dict[str, list] = {name: [] for name in names}
    compared = [(config.batches[0], length, config.mixers) for length in config.lengths]
    few = tuple(name for name in config.mixers if name in (S4, LINEAR))
    compared += [(batch, config.lengths[-1], few) for batch in config.batches[1:] if few]
    for batch, length, kinds in compared:
        made = {name: program(config, name, batch, length) for name in kinds}
        for seed in config.seeds:
            timings = take_turns([own.call for own in made.values()], config.calls)
            for (name, own), timing in zip(made.items(), timings, strict=True):
                memory = float("nan") if own.temporaries is None else own.temporaries / 2**20
                row = (name, batch, length, seed, timing.cpu_ms, timing.wall_ms, memory)
                for column, entry in zip(columns.values(), row, strict=True):
                    column.append(entry)
    return Result(measured=_measured(columns), tables={"costs": columns})


def program(config: Config, name: str, batch: int, length: int) -> Program:
    """A mixer with its gradients with respect to input and parameters.

    Args:
        config: the sizes.
        name: of the mixer.
        batch: sequences B.
        length: tokens L.

    Returns:
        The program, compiled.
    """
    import flax.linen as nn
    import jax

    from experiments.scan_benchmark.measure import cotangents_of, jax_program

    layer = mixers.mixer(name, causal=True)(width=config.width, num_heads=config.heads)
    x = jax.random.normal(jax.random.key(length), (batch, length, config.width))
    leaves, tree = jax.tree.flatten(nn.unbox(jax.jit(layer.init)(jax.random.key(0), x)))

    def outputs(x: jax.Array, *leaves: jax.Array) -> tuple[jax.Array]:
        y, _ = layer.apply(jax.tree.unflatten(tree, leaves), x)
        return (y,)

    return jax_program(outputs, (x, *leaves), cotangents_of(outputs, (x, *leaves)))


def _measured(columns: dict[str, list]) -> dict[str, Any]:
    """The claims whose length, batch and mixers are there: one value per repetition."""

    def of(name: str, batch: int, column: str) -> np.ndarray:
        rows = zip(columns["mixer"], columns["batch"], columns["length"], columns[column], strict=True)
        return np.array([value for *row, value in rows if row == [name, batch, CLAIMED_LENGTH]])

    found = {}
    for id, batch in CLAIMED_BATCHES.items():
        if len(of(S4, batch, "cpu_ms")) and len(of(LINEAR, batch, "cpu_ms")):
            ratios = [of(S4, batch, column) / of(LINEAR, batch, column) for column in ("cpu_ms", "mebibytes")]
            found[f"long_memory/{id}"] = np.max(ratios, axis=0)
    return found


def plot(result: StoredResult) -> Figure:
    """CPU time and memory of the first batch against the length, lines through medians, dots for repetitions."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["costs"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    labels = {"cpu_ms": "CPU time of a pass and its gradient, ms", "mebibytes": "memory beside its arguments, MiB"}
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for name in dict.fromkeys(table["mixer"].tolist()):
            own = (table["mixer"] == name) & (table["batch"] == table["batch"][0])
            colour = COLOURS.get(name, "#555555")
            lengths = np.unique(table["length"][own])
            medians = [np.median(table[column][own & (table["length"] == length)]) for length in lengths]
            axis.plot(table["length"][own], table[column][own], "o", color=colour, markersize=3, alpha=0.5)
            axis.plot(lengths, medians, color=colour, label=name)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="tokens", ylabel=label, yscale="log")
        axis.grid(color="0.9")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
