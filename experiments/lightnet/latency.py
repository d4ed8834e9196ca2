"""One scan without an order costs about as much as plain linear attention; two and four directional scans cost more.

Time of a forward and backward pass of one mixer, and of the recurrence in it alone (Figure 2 of arXiv 2405.21022, known
from a review only: the attention block is exchanged and the rest kept; its settings are not known). All programs of a
length take turns in one process. A "seed" is a repetition of the whole measurement with the same programs, and a claim
is about the ratio of two medians of one repetition. The clock is the CPU time of the process, or wall time where there
is an accelerator.

"mixer" has its projections, gate, norm and output; "recurrence" has neither, and gets its gates as arguments. Softmax
attention has no gate and no norm, and so one product of matrices less. Softmax attention is timed with LightNet at
more lengths: where it becomes slower is read off these.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.scan_benchmark.measure import Program, Timing

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="Figure 2",
    minutes={"smoke": 0.2, "cpu": 2, "gpu": 10},
)
LEVELS = ("mixer", "recurrence")
SHORTEST = 0.01  # seconds that are timed at least, in as many calls: the clock is late with threads that still run


@dataclass(frozen=True)
class Config(results.Config):
    """Shapes, and how often a program is called."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition of all timings each."""
    batch: int = 2
    """Sequences."""
    heads: int = 4
    """Heads."""
    head_size: int = 32
    """Channels of a head."""
    mixers: tuple[str, ...] = ("linear", "multiplicative", "multiplicative-2", "multiplicative-4")
    """What is timed beside LightNet and softmax attention; a claim on what is not there is not tested."""
    lengths: tuple[int, ...] = (64, 256, 1024)
    """Tokens, of all mixers; claims are about the last."""
    curve: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Tokens, of LightNet and softmax attention."""
    calls: int = 8
    """Measured calls of a program in a repetition, of which the median counts."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of inputs and parameters."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("batch", "heads", "head_size", "calls"):
            require(name, getattr(self, name), 1)
        if unknown := set(self.mixers) - {"linear", ONE, TWO, FOUR}:
            raise ValueError(f"mixers: got {', '.join(sorted(unknown))}, expected some of linear, {ONE}, {TWO}, {FOUR}")
        for name, least in (("lengths", 1), ("curve", 2)):
            values = getattr(self, name)
            require(f"number of {name}", len(values), least)
            require(f"the smallest of {name}", min(values), 4)
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name}: got {values}, expected growing numbers")


ONE, TWO, FOUR = "multiplicative", "multiplicative-2", "multiplicative-4"
PRESETS = {
    "smoke": Config(seeds=(0,), batch=1, heads=1, head_size=4, mixers=("linear",), lengths=(8,), curve=(4, 8), calls=1),
    "cpu": Config(),
    "gpu": Config(
        batch=8,
        heads=8,
        head_size=64,
        lengths=(1024, 4096, 8192),
        curve=(256, 512, 1024, 2048, 4096, 8192),
        calls=20,
        precision="bfloat16",
    ),
}

CLAIMS = (
    Claim(
        "lightnet/Fig2-one-scan-faster",
        "mixer, longest length: time of two multiplicative scans over that of LightNet, per repetition",
        "above",
        1.0,
    ),
    Claim(
        "lightnet/R1-cheaper-than-multiplicative",
        "recurrence, longest length: time of one multiplicative scan over that of LightNet, per repetition",
        "above",
        3.0,
    ),
    Claim(
        "lightnet/R1-softmax-quadratic",
        "recurrence: exponent of softmax attention's time between the two longest lengths, per repetition",
        "within",
        2.0,
        tolerance=0.25,
    ),
    Claim(
        "lightnet/R1-softmax-crossing",
        "mixer: number of tokens from which softmax attention is slower than LightNet, or the fewest that were timed, "
        "per repetition",
        "below",
        1000,
        kind="ours",
    ),
    Claim(
        "lightnet/R1-one-scan-mixer",
        "mixer, longest length: time of one multiplicative scan over that of LightNet, per repetition",
        "above",
        2.0,
        kind="ours",
    ),
    Claim(
        "lightnet/R1-one-scan-recurrence",
        "recurrence, longest length: time of one multiplicative scan over that of LightNet, per repetition",
        "above",
        2.0,
        kind="ours",
    ),
    Claim(
        "lightnet/R1-four-scans-mixer",
        "mixer, longest length: time of four multiplicative scans over that of LightNet, per repetition",
        "above",
        8.0,
        kind="ours",
    ),
    Claim(
        "lightnet/R1-four-scans-recurrence",
        "recurrence, longest length: time of four multiplicative scans over that of LightNet, per repetition",
        "above",
        8.0,
        kind="ours",
    ),
    Claim(
        "lightnet/R1-linear-in-scans",
        "recurrence, longest length: time of four multiplicative scans over that of one, per repetition",
        "within",
        4.0,
        tolerance=1.0,
        kind="ours",
    ),
    Claim(
        "lightnet/R1-about-linear-attention",
        "recurrence, longest length: time of LightNet over that of plain linear attention, per repetition",
        "within",
        1.0,
        tolerance=0.5,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Time every program, length by length."""
    import jax

    clock = "cpu_ms" if jax.default_backend() == "cpu" else "wall_ms"
    table: dict[str, list] = {
        name: [] for name in ("level", "mixer", "length", "repetition", "cpu_ms", "wall_ms", "calls")
    }
    for length in sorted({*config.lengths, *config.curve}):
        for (level, name), timings in _timings(config, length).items():
            for seed, timing in zip(config.seeds, timings, strict=True):
                row = (level, name, length, seed, timing.cpu_ms, timing.wall_ms, timing.calls)
                for column, entry in zip(table.values(), row, strict=True):
                    column.append(entry)
    times = by_program(table, clock, len(config.seeds))
    return Result(
        measured=_measured(config, times),
        tables={"times": table, "clock": {"clock": [clock]}, "medians": _medians(times)},
        series={},
    )


def by_program(table: dict[str, list], clock: str, repetitions: int) -> dict[tuple[str, str, int], np.ndarray]:
    """Times of each (level, mixer, length), one per repetition, from the rows of the table."""
    keys = list(zip(table["level"], table["mixer"], table["length"], strict=True))
    values = np.array(table[clock], float).reshape(-1, repetitions)
    return dict(zip(keys[::repetitions], values, strict=True))


def _timings(config: Config, length: int) -> dict[tuple[str, str], list[Timing]]:
    """A timing per repetition of each program of one length."""
    from experiments.scan_benchmark.measure import take_turns

    names = ("lightnet", "softmax", *(config.mixers if length in config.lengths else ()))
    programs = {(level, name): _program(config, level, name, length).call for level in LEVELS for name in names}
    counts = [_calls_in(SHORTEST, call) for call in programs.values()]
    calls = [partial(_repeat, call, count) for call, count in zip(programs.values(), counts, strict=True)]
    rounds = [take_turns(calls, config.calls) for _ in config.seeds]
    return {key: [_per_call(found[i], counts[i]) for found in rounds] for i, key in enumerate(programs)}


def _calls_in(seconds: float, call: Callable[[], Any]) -> int:
    """How many calls take so long, by the second one, which is not compiled."""
    call()
    start = time.perf_counter()
    call()
    return math.ceil(seconds / (time.perf_counter() - start))


def _repeat(call: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        call()


def _per_call(timing: Timing, count: int) -> Timing:
    cpu, wall, least = (value / count for value in (timing.cpu_ms, timing.wall_ms, timing.least_cpu_ms))
    return replace(timing, cpu_ms=cpu, wall_ms=wall, least_cpu_ms=least, calls=timing.calls * count)


def _program(config: Config, level: str, name: str, length: int) -> Program:
    """Forward and backward pass of a mixer with respect to its input and parameters, or of a recurrence."""
    from experiments.scan_benchmark.measure import cotangents_of, jax_program

    make = _mixer if level == "mixer" else _recurrence
    function, arguments = make(config, name, length)
    return jax_program(function, arguments, cotangents_of(function, arguments))


def _mixer(config: Config, name: str, length: int) -> tuple[Any, tuple]:
    import jax
    from flax import linen as nn

    from experiments.mixers import mixer

    grid = shape_of(length) if name == FOUR else None
    module = mixer(name, causal=name == ONE)(width=config.heads * config.head_size, num_heads=config.heads, grid=grid)
    x = jax.random.normal(jax.random.key(0), (config.batch, length, module.width), config.precision)
    variables = jax.tree.map(lambda p: p.astype(config.precision), nn.unbox(module.init(jax.random.key(1), x)))
    return lambda variables, x: (module.apply(variables, x)[0],), (variables, x)


def _recurrence(config: Config, name: str, length: int) -> tuple[Any, tuple]:
    import jax

    from experiments.lightnet.cores import core, operands

    shape = (config.batch, length, config.heads, config.head_size)
    q, logits, v = jax.random.normal(jax.random.key(2), (3, *shape), config.precision)
    mix = core(name, shape_of(length))
    return lambda *arrays: (mix(*arrays),), operands(name, jax.nn.silu(q), logits, v)


def shape_of(length: int) -> tuple[int, int]:
    """The most nearly square grid of so many tokens.

    Example:
        >>> shape_of(64), shape_of(128), shape_of(7)
        ((8, 8), (8, 16), (1, 7))
    """
    rows = next(rows for rows in range(math.isqrt(length), 0, -1) if length % rows == 0)
    return rows, length // rows


# claim: at which level what is divided by what, at the longest length
RATIOS = {
    "lightnet/Fig2-one-scan-faster": ("mixer", TWO, "lightnet"),
    "lightnet/R1-cheaper-than-multiplicative": ("recurrence", ONE, "lightnet"),
    "lightnet/R1-one-scan-mixer": ("mixer", ONE, "lightnet"),
    "lightnet/R1-one-scan-recurrence": ("recurrence", ONE, "lightnet"),
    "lightnet/R1-four-scans-mixer": ("mixer", FOUR, "lightnet"),
    "lightnet/R1-four-scans-recurrence": ("recurrence", FOUR, "lightnet"),
    "lightnet/R1-linear-in-scans": ("recurrence", FOUR, ONE),
    "lightnet/R1-about-linear-attention": ("recurrence", "lightnet", "linear"),
}


def _measured(config: Config, times: dict[tuple[str, str, int], np.ndarray]) -> dict[str, Any]:
    """One value per claim and repetition."""
    of = {(level, name): value for (level, name, length), value in times.items() if length == config.lengths[-1]}
    measured: dict[str, Any] = {
        claim: of[level, over] / of[level, under]
        for claim, (level, over, under) in RATIOS.items()
        if {(level, over), (level, under)} <= of.keys()
    }
    last, longest = config.curve[-2:]
    growth = times["recurrence", "softmax", longest] / times["recurrence", "softmax", last]
    measured["lightnet/R1-softmax-quadratic"] = np.log(growth) / math.log(longest / last)
    ratios = np.stack([times["mixer", "softmax", n] / times["mixer", "lightnet", n] for n in config.curve], axis=1)
    measured["lightnet/R1-softmax-crossing"] = [crossing(config.curve, ratio) for ratio in ratios]
    return measured


def crossing(lengths: Sequence[int], ratio: np.ndarray) -> float:
    """The length from which on a ratio stays above 1, between two lengths by interpolation of the logarithms.

    Args:
        lengths: growing.
        ratio: one per length.

    Returns:
        The length; the first one if the ratio is above 1 everywhere, infinite if it ends at 1 or below.

    Example:
        >>> crossing((10, 1000, 4000), np.array([0.1, 10.0, 20.0])).__round__(6)
        100.0
    """
    below = np.flatnonzero(~(np.asarray(ratio) > 1))
    if not below.size:
        return float(lengths[0])
    last = int(below[-1])
    if last + 1 == len(lengths):
        return math.inf
    x, y = np.log(lengths[last : last + 2]), np.log(ratio[last : last + 2])
    return float(np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0])))


def _medians(times: dict[tuple[str, str, int], np.ndarray]) -> dict[str, list]:
    """Medians over repetitions, and over LightNet's median at the same level and length."""
    keys = list(times)
    medians = {key: float(np.median(values)) for key, values in times.items()}
    return {
        "level": [key[0] for key in keys],
        "mixer": [key[1] for key in keys],
        "length": [key[2] for key in keys],
        "ms": [medians[key] for key in keys],
        "over_lightnet": [medians[key] / medians[key[0], "lightnet", key[2]] for key in keys],
    }


STYLES = {
    "lightnet": ("#0072B2", "o", "LightNet, no order"),
    "linear": ("#56B4E9", "s", "plain linear"),
    ONE: ("#E69F00", "^", "multiplicative, 1 scan"),
    TWO: ("#D55E00", "v", "multiplicative, 2 scans"),
    FOUR: ("#CC79A7", "D", "multiplicative, 4 scans"),
    "softmax": ("black", "x", "softmax"),
}


def plot(result: StoredResult) -> Figure:
    """Time against length, mixer left and recurrence right, with lines of slopes 1 and 2."""
    from matplotlib import pyplot as plt

    rows = result.tables["medians"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True, layout="constrained")
    for axis, level in zip(axes, LEVELS, strict=True):
        for name, (colour, marker, label) in STYLES.items():
            if points := _points(rows, level, name):
                axis.loglog(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=label)
        _slopes(axis, _points(rows, level, "lightnet"), 1)
        _slopes(axis, _points(rows, level, "softmax"), 2)
        axis.set(title=f"{level}, forward + backward", xlabel="tokens")
    clock = {"cpu_ms": "CPU time", "wall_ms": "wall time"}[result.tables["clock"]["clock"][0]]
    axes[0].set_ylabel(f"{clock} of a call, ms (median)")
    axes[0].legend(fontsize=7, frameon=False)
    _mark_crossing(axes[0], result)
    return figure


def _points(rows: Any, level: str, name: str) -> list[tuple[int, float]]:
    columns = zip(rows["level"], rows["mixer"], rows["length"], rows["ms"], strict=True)
    return [(length, ms) for at, mixer, length, ms in columns if (at, mixer) == (level, name)]


def _slopes(axis: Any, points: list[tuple[int, float]], slope: int) -> None:
    """A dotted line of a slope through the last point, where it is the theory's for large lengths."""
    (start, _), (end, last) = points[len(points) // 2], points[-1]
    n = np.array([start, end])
    axis.loglog(n, last * (n / end) ** slope, color="grey", linestyle=":", linewidth=1.2, zorder=0)
    axis.annotate(f"n^{slope}", (n[0], last * (n[0] / end) ** slope), color="grey", fontsize=8, va="top")


def _mark_crossing(axis: Any, result: StoredResult) -> None:
    measured = next(claim for claim in result.claims if claim["claim"] == "lightnet/R1-softmax-crossing")["measured"]
    if measured is not None and math.isfinite(measured):
        axis.axvline(measured, color="grey", linewidth=0.8, linestyle="--")
        axis.text(measured, axis.get_ylim()[0], f" {measured:.0f} tokens", fontsize=8, color="grey", va="bottom")
