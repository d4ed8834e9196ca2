"""Time per token against the length of the sequence, with the number of tokens held constant but for the longest.

The longest sequence has more tokens than a call of the others, which take turns: it is timed forward only, and by
itself. Its ratio to them enters the verdict, and is worth less on a machine whose speed drifts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from experiments.scan_benchmark import functions
from experiments.scan_benchmark.functions import Function, Operands, rounded
from experiments.scan_benchmark.measure import BOTH, FORWARD, Program, cotangents_of, jax_program, take_turns
from experiments.scan_benchmark.speed import Verdict

# Sizes of one token, with which a quarter of a million of them fit into memory with their gradients.
SIZES: Mapping[str, tuple[Function, tuple[int, ...]]] = {
    "linear": (functions.LINEAR, (256,)),
    "selective": (functions.SELECTIVE, (64, 16)),
    "gated": (functions.GATED, (1, 64)),
    "additive": (functions.ADDITIVE, (1, 64)),
}
LENGTHS, LONGEST = (1 << 12, 1 << 14, 1 << 16, 1 << 18), 1 << 20
TINY_LENGTHS, TINY_LONGEST = (32, 64), 128
MOST = 1.2  # times what a token of the shortest sequence takes


@dataclass(frozen=True)
class Point:
    """One length.

    Attributes:
        function: name.
        phase: forward, or forward and backward.
        batch: sequences.
        length: tokens of each.
        token_ns: CPU time of one token, in nanoseconds.
        wall_ns: wall time of one token, in nanoseconds.
    """

    function: str
    phase: str
    batch: int
    length: int
    token_ns: float
    wall_ns: float


def measure_growth(group: str, repeats: int, tiny: bool) -> tuple[list[Point], list[Verdict]]:
    """Time one function at all lengths, which take turns; the longest forward only, by itself and with more tokens.

    Args:
        group: one of `SIZES`.
        repeats: calls at each length.
        tiny: whether at lengths that show only that everything runs.

    Returns:
        Points and a verdict for each phase.
    """
    function, size = SIZES[group]
    lengths, longest = (TINY_LENGTHS, TINY_LONGEST) if tiny else (LENGTHS, LONGEST)
    if tiny:
        size = tuple(min(n, 8) for n in size)
    points, verdicts = [], []
    for phase in (FORWARD, BOTH):
        title = f"{function.name}, {lengths[-1]} tokens of {size}"
        shapes = [(lengths[-1] // length, length) for length in lengths]
        found = _points(function, phase, shapes, size, repeats)
        if phase == FORWARD:
            found += _points(function, phase, [(1, longest)], size, repeats)
            title += f", and {longest} by themselves"
        points += found
        worst = max(found[1:], key=lambda point: point.token_ns)
        what = f"time per token, L {worst.length} over L {lengths[0]}"
        verdicts.append(Verdict(title, phase, what, worst.token_ns / found[0].token_ns, MOST, False, judged=not tiny))
    return points, verdicts


def _points(
    function: Function, phase: str, shapes: list[tuple[int, int]], size: tuple[int, ...], repeats: int
) -> list[Point]:
    programs = [_program(function, phase, batch, length, size) for batch, length in shapes]
    timings = take_turns([program.call for program in programs], repeats)
    points = []
    for (batch, length), timing in zip(shapes, timings, strict=True):
        times = (1e6 * ms / (batch * length) for ms in (timing.cpu_ms, timing.wall_ms))
        points.append(Point(function.name, phase, batch, length, *times))
    return points


def _program(function: Function, phase: str, batch: int, length: int, size: tuple[int, ...]) -> Program:
    operands = _operands(function, batch, length, size)
    return jax_program(function.run, operands, None if phase == FORWARD else cotangents_of(function.run, operands))


def _operands(function: Function, batch: int, length: int, size: tuple[int, ...]) -> Operands:
    """Of a few thousand tokens drawn once, over and over: drawing all would take longer than measuring."""
    random, period = np.random.default_rng(0), min(length, 1 << 12)
    per_token = rounded(function.draw((1, period, *size), function.regimes[0], random), function, np.float32)
    per_row = rounded(function.draw((batch, 1, *size), function.regimes[0], random), function, np.float32)
    return tuple(
        jnp.tile(x, (batch, length // period, *(1 for _ in x.shape[2:]))) if x.shape[:2] == (1, period) else y
        for x, y in zip(per_token, per_row, strict=True)
    )
