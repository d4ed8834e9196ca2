"""Programs and their times: process CPU time and wall, medians, with the competitors in turn.

All that is compared in a case runs in one process and takes turns in blocks of a few calls, because the speed of a
shared machine drifts, and a ratio of two times is only worth something if both were taken under the same conditions;
of the longest sequence of `growth`, which is timed alone, that cannot be said. The first call of a block is not
measured: it finds the caches and the heap as another program left them, the others as it left them itself.

Ratios are those of CPU time, which other processes on the machine disturb least; the threads of a program add up in it.
Compile times are CPU times too, and each program is compiled anew.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from experiments.scan_benchmark.functions import Operands

FORWARD, BOTH = "forward", "forward + backward"
BLOCKS = 4  # rounds in which the competitors take turns
LONG = 0.5  # seconds of a call beside which the state of the caches does not matter
PATIENCE = 40.0  # seconds after which a program that takes so long per call has been called often enough
FEWEST = 3  # calls of which a median is taken; a program for which that takes too long is called once


class Missing(Exception):
    """A peer that cannot run here; the message says why."""


@dataclass(frozen=True)
class Program:
    """Something that can be called, and is finished when the call returns.

    Attributes:
        call: returns the outputs, and after them, for a backward pass, the gradients of all operands.
        temporaries: bytes besides arguments and results; None if unknown.
        compile_seconds: CPU time of tracing and compiling; None if nothing is compiled.
    """

    call: Callable[[], Any]
    temporaries: int | None = None
    compile_seconds: float | None = None


class Seconds(NamedTuple):
    """Of one call."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Timing:
    """Of one call, in milliseconds: medians, the least CPU time, and how many calls they were taken of."""

    cpu_ms: float
    wall_ms: float
    least_cpu_ms: float
    calls: int


def jax_program(function: Callable[..., Operands], operands: Operands, cotangents: Operands | None = None) -> Program:
    """Compile a function of arrays, or the function and its transpose.

    Args:
        function: of the operands.
        operands: arrays; none of them is a constant of the program.
        cotangents: of all outputs; None for the forward pass alone.

    Returns:
        The program.

    Example:
        >>> program = jax_program(lambda x: (2 * x,), (jax.numpy.ones(2),), (jax.numpy.ones(2),))
        >>> outputs, gradients = program.call()
        >>> outputs[0].tolist(), gradients[0].tolist()
        ([2.0, 2.0], [2.0, 2.0])
    """

    # Functions of their own: what was compiled before would be found again, and compile in no time.
    def forward(*operands: Any) -> Operands:
        return tuple(function(*operands))

    def both(operands: Operands, cotangents: Operands) -> tuple[Operands, Operands]:
        outputs, transpose = jax.vjp(forward, *operands)
        return outputs, transpose(cotangents)

    arguments = operands if cotangents is None else (operands, cotangents)
    start = time.process_time()
    compiled = jax.jit(forward if cotangents is None else both).lower(*arguments).compile()
    seconds = time.process_time() - start
    analysis = compiled.memory_analysis()
    temporaries = None if analysis is None else int(analysis.temp_size_in_bytes)
    return Program(lambda: jax.block_until_ready(compiled(*arguments)), temporaries, seconds)


def cotangents_of(function: Callable[..., Operands], operands: Operands, seed: int = 1) -> Operands:
    """Random cotangents of all outputs, of their shapes and dtypes.

    Args:
        function: of the operands.
        operands: arrays.
        seed: of the numbers.

    Returns:
        Arrays.
    """
    random = np.random.default_rng(seed)

    def draw(like: Any) -> jax.Array:
        value = random.standard_normal(like.shape)
        if jax.numpy.issubdtype(like.dtype, jax.numpy.complexfloating):
            value = value + 1j * random.standard_normal(like.shape)
        return jax.numpy.asarray(value, like.dtype)

    return tuple(draw(like) for like in jax.eval_shape(lambda *x: tuple(function(*x)), *operands))


def take_turns(
    calls: Sequence[Callable[[], Any]], repeats: int, firsts: Sequence[Seconds] | None = None
) -> list[Timing]:
    """Time several programs against each other.

    Args:
        calls: programs.
        repeats: measured calls of each, or fewer of those that would take longer than `PATIENCE` together.
        firsts: what the first call of each took; None makes these calls. It counts only where there is no time for
            others.

    Returns:
        A timing for each.
    """
    firsts = [clocked(call)[0] for call in calls] if firsts is None else firsts
    counts = [_count(first.wall, repeats) for first in firsts]
    times: list[list[Seconds]] = [[] if count else [first] for first, count in zip(firsts, counts, strict=True)]
    for block in range(BLOCKS):
        for call, found, first, count in zip(calls, times, firsts, counts, strict=True):
            size = count // BLOCKS + (block < count % BLOCKS)  # the first blocks take what does not divide
            if first.wall < LONG and size:
                call()
            found += [clocked(call)[0] for _ in range(size)]
    return [_timing(found) for found in times]


def clocked(call: Callable[[], Any]) -> tuple[Seconds, Any]:
    """Time one call.

    Args:
        call: a program.

    Returns:
        CPU and wall seconds, and its results, which are freed after the clock was read.
    """
    cpu, wall = time.process_time(), time.perf_counter()
    results = call()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall), results


def relative_error(found: Any, expected: Any, floor: float = 0.0) -> float:
    """Of two arrays, in the Frobenius norm; NaN anywhere gives NaN.

    Args:
        found: an array.
        expected: another.
        floor: least norm that the error is divided by; where 0 is expected and there is none, the error is absolute.

    Returns:
        The error.

    Example:
        >>> relative_error([1.0, 1.0], [1.0, 0.0]), relative_error([0.5], [0.0])
        (1.0, 0.5)
    """
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    found, expected = np.asarray(found).astype(wide), np.asarray(expected).astype(wide)
    return float(np.linalg.norm(found - expected)) / (max(float(np.linalg.norm(expected)), floor) or 1.0)


@contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Compile everything anew, whatever the environment says, or compile times would be those of reading a file."""
    before = jax.config.values["jax_enable_compilation_cache"]
    _use_compilation_cache(False)
    try:
        yield
    finally:
        _use_compilation_cache(before)


def _use_compilation_cache(used: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", used)
    compilation_cache.reset_cache()  # or JAX goes on as it decided when it compiled for the first time


def _count(seconds: float, repeats: int) -> int:
    """Calls of a program that took so long; 0 if even the fewest would take too long."""
    possible = int(PATIENCE / seconds)
    return 0 if possible < FEWEST else min(repeats, possible)


def _timing(found: list[Seconds]) -> Timing:
    cpu, wall = ([1e3 * seconds for seconds in column] for column in zip(*found, strict=True))
    return Timing(statistics.median(cpu), statistics.median(wall), min(cpu), len(found))
