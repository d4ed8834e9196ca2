"""What this machine could do at best: measured rates, and the time that bytes and operations would take at them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.scan_benchmark.measure import jax_program, take_turns

LARGE, SMALL, SIDE = 1 << 24, 1 << 17, 1024  # elements beyond every cache; within the second level; of a square matrix


@dataclass(frozen=True)
class Rates:
    """Per second of CPU time.

    Attributes:
        copy: bytes read and written by a copy of a large array.
        triad: bytes read and written by a + 2 b on large arrays, whose result is new memory at each call.
        exponentials: of float32 numbers in the cache.
        multiply_adds: float32, in a product of two square matrices.
    """

    copy: float
    triad: float
    exponentials: float
    multiply_adds: float


@dataclass(frozen=True)
class Work:
    """What a function cannot do without: its arrays, and its formula token by token with nothing made twice.

    The bytes are those of every algorithm. One that never makes the states could do with fewer multiply-adds.

    Attributes:
        bytes: of all arrays over time: operands and cotangents read once, results and gradients written once.
        exponentials: of each decay or key one, also where the backward pass needs them again.
        multiply_adds: with one element of a state or one tap; what is done once per token and channel is not counted.
    """

    bytes: float
    exponentials: float = 0.0
    multiply_adds: float = 0.0


def measured_rates(repeats: int, large: int = LARGE, side: int = SIDE) -> Rates:
    """Measure this machine.

    Args:
        repeats: calls of each, at least.
        large: elements of the arrays that are copied.
        side: of the matrices.

    Returns:
        The rates.
    """
    source, target = np.ones(large, np.float32), np.ones(large, np.float32)
    a, b, small, matrix = (jnp.ones(shape) for shape in (large, large, SMALL, (side, side)))
    programs: list[Callable[[], Any]] = [
        lambda: np.copyto(target, source),
        jax_program(lambda a, b: (a + 2 * b,), (a, b)).call,
        jax_program(lambda x: (jnp.exp(x),), (small,)).call,
        jax_program(lambda x, y: (x @ y,), (matrix, matrix)).call,
    ]
    amounts = (8.0 * large, 12.0 * large, float(SMALL), float(side) ** 3)
    times = take_turns(programs, repeats)
    return Rates(*(amount / (1e-3 * time.cpu_ms) for amount, time in zip(amounts, times, strict=True)))


def floors(work: Work, rates: Rates) -> dict[str, float]:
    """Milliseconds of CPU time that each kind of work takes at the measured rates.

    Args:
        work: of a function.
        rates: of the machine.

    Returns:
        `copy` and `triad` of the bytes, `exponentials` and `multiply_adds`. Large results are memory that is new to the
        process, as in the triad; small ones may be written as fast as copied.

    Example:
        >>> floors(Work(12e9), Rates(24e9, 12e9, 1.0, 1.0))
        {'copy': 500.0, 'triad': 1000.0, 'exponentials': 0.0, 'multiply_adds': 0.0}
    """
    amounts = {"copy": work.bytes, "triad": work.bytes}
    amounts |= {"exponentials": work.exponentials, "multiply_adds": work.multiply_adds}
    return {kind: 1e3 * amount / getattr(rates, kind) for kind, amount in amounts.items()}
