"""What is timed on an accelerator: function, size, precision, peers; and what is asked of the times.

Sizes are those that the peers publish or test with, and those of research: the first of each function is the one that
a number is asked for. Nothing here needs a device.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.scan_benchmark import cases as host_cases
from experiments.scan_benchmark import functions
from experiments.scan_benchmark.functions import Function, Operands, Shape, rounded
from experiments.scan_benchmark.measure import BOTH, FORWARD
from lightnet.scan import (
    additive_global,
    additive_recurrence,
    causal_conv,
    diagonal_ssm,
    gated_linear_attention,
    linear_scan,
    selective_scan,
)

PERIOD = 256  # tokens that are drawn; a sequence is made of them, over and over
SHIFT = 37  # tokens by which a row begins later in them than the row before it
LEAST_SETS, MOST_SETS = 2, 8  # of operands, which take turns
CACHES = 1 << 27  # bytes that all sets together should have at least: twice the cache of today's accelerators
SAMPLED = 64  # tokens of a row that are compared
PUBLIC: dict[str, Callable[..., Any]] = {
    functions.LINEAR.name: linear_scan,
    functions.CONSTANT.name: linear_scan,
    functions.COMPLEX.name: linear_scan,
    functions.DIAGONAL.name: diagonal_ssm,
    functions.SELECTIVE.name: selective_scan,
    functions.GATED.name: gated_linear_attention,
    functions.PER_HEAD.name: gated_linear_attention,
    functions.ADDITIVE.name: additive_recurrence,
    functions.GLOBAL.name: additive_global,
    functions.CONV.name: causal_conv,
}
PEERS = {  # function -> names in `peers`, all in torch
    functions.LINEAR.name: ("fla chunk_hgrn", "fla fused_recurrent_hgrn"),
    functions.GATED.name: ("fla chunk_gla",),
    functions.PER_HEAD.name: ("fla chunk_simple_gla",),
    functions.ADDITIVE.name: ("fla chunk_lightnet",),
    functions.SELECTIVE.name: ("mamba-ssm selective_scan_fn",),
}
SCANS = ("linear", "diagonal", "selective", "gated", "additive")  # groups that `lax.associative_scan` can do
PARAMETERS = {functions.SELECTIVE.name: (2,)}  # operands that are float32 beside bfloat16 ones, as in training


@dataclass(frozen=True)
class DeviceCase:
    """One function at one size and precision, without initial state.

    Attributes:
        group: what `--only` calls it.
        function: name, a key of `PUBLIC`.
        shape: of the problem, as in `functions`.
        dtype: of its operands; complex ones are complex64.
    """

    group: str
    function: str
    shape: Shape
    dtype: str

    @property
    def title(self) -> str:
        """Name, size and precision."""
        return f"{self.function} {self.shape} {self.dtype}"


@dataclass(frozen=True)
class Target:
    """A number that is asked for.

    Attributes:
        case: where.
        phase: forward, or forward and backward.
        peer: whom ours should be faster than; None for a fraction of the speed of a copy.
        asked: how many times faster, or the fraction.
    """

    case: DeviceCase
    phase: str
    peer: str | None
    asked: float

    @property
    def what(self) -> str:
        """What is asked for, in words."""
        return "of the measured copy" if self.peer is None else f"times faster than {self.peer}"


def function_named(name: str) -> Function:
    """The function of that name, with its states and its regimes of gates."""
    return next(f for f in vars(functions).values() if isinstance(f, Function) and f.name == name)


def call(name: str, implementation: str | None) -> Callable[..., Operands]:
    """A function of operands without states: (output, final states).

    Args:
        name: of the function.
        implementation: what `lightnet.scan` calls it.

    Returns:
        The function; its outputs are flat, the first is the one over time.
    """
    return lambda *operands: tuple(jax.tree.leaves(PUBLIC[name](*operands, implementation=implementation)))


def cases(tiny: bool = False) -> list[DeviceCase]:
    """All cases, those that numbers are asked for first.

    Args:
        tiny: whether at sizes that show only that everything runs.

    Returns:
        The cases.
    """
    if not tiny:
        return list(_all())
    return list(dict.fromkeys(replace(case, shape=host_cases.tiny_shape(case.shape)) for case in _all()))


def targets(tiny: bool = False) -> list[Target]:
    """What is asked for.

    Args:
        tiny: of the tiny cases, where the numbers mean nothing.

    Returns:
        The targets.
    """
    first = {case.function: case for case in reversed(cases(tiny)) if case.dtype == "bfloat16"}
    linear, gated = first[functions.LINEAR.name], first[functions.GATED.name]
    selective = first[functions.SELECTIVE.name]
    return [
        Target(linear, FORWARD, None, 0.75),
        Target(first[functions.GLOBAL.name], FORWARD, None, 0.70),
        Target(first[functions.ADDITIVE.name], FORWARD, None, 0.50),
        Target(gated, FORWARD, None, 0.45),
        Target(gated, FORWARD, "fla chunk_gla", 3.0),
        Target(gated, BOTH, "fla chunk_gla", 2.5),
        Target(selective, FORWARD, "mamba-ssm selective_scan_fn", 1.5),
        Target(selective, BOTH, "mamba-ssm selective_scan_fn", 1.2),
    ]


def drawn(case: DeviceCase, seed: int) -> list[tuple[np.ndarray, bool]]:
    """Operands of a few hundred tokens in float32 or complex64, from which the whole ones are made on the device.

    Args:
        case: which.
        seed: of the numbers.

    Returns:
        Operands without states, and of each whether it is over time: then it has axes (1, tokens, ...), from which the
        token at (b, t) is number (t + `SHIFT` b) modulo the tokens.
    """
    function, (_, length, *rest) = function_named(case.function), case.shape
    period = min(length, PERIOD)
    random = np.random.default_rng([seed, zlib.crc32(case.function.encode())])
    operands = function.draw((1, period, *rest), function.regimes[0], random)
    arrays = [np.asarray(x) for x in rounded(operands[: _without_states(function, operands)], function, np.float32)]
    return [(x, x.shape[:2] == (1, period)) for x in arrays]


def dtypes(case: DeviceCase, operands: Sequence[np.ndarray]) -> list[str]:
    """Names of the dtypes in which the operands are passed."""
    kept = PARAMETERS.get(case.function, ())
    return [x.dtype.name if np.iscomplexobj(x) or index in kept else case.dtype for index, x in enumerate(operands)]


def sets_wanted(size: int) -> int:
    """How many sets of operands take turns, so that none finds its own in the cache.

    Args:
        size: bytes of a set.

    Returns:
        The number.

    Example:
        >>> sets_wanted(1 << 30), sets_wanted(1 << 25), sets_wanted(1)
        (2, 4, 8)
    """
    return max(LEAST_SETS, min(MOST_SETS, -(-CACHES // size)))


def sampled(batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and tokens of an output that are compared between programs: the first row and the last, from end to end."""
    return np.array([0, batch - 1]), np.linspace(0, length - 1, min(SAMPLED, length)).astype(int)


def moved(case: DeviceCase) -> dict[str, int]:
    """Bytes that no implementation can do without: each operand and cotangent read once, each result written once.

    Args:
        case: which.

    Returns:
        phase -> bytes. The final state is a result of the forward pass; with the backward pass, which has a cotangent
        of the output alone, it is not.
    """
    operands = _like(case)
    outputs = jax.eval_shape(call(case.function, "xla"), *operands)
    inputs, output = sum(map(_size, operands)), _size(outputs[0])
    return {FORWARD: inputs + sum(map(_size, outputs)), BOTH: 2 * (inputs + output)}


def multiply_adds(case: DeviceCase) -> dict[str, float]:
    """Products of the formula token by token, for functions whose state is a matrix; 0 for the others.

    Args:
        case: which.

    Returns:
        phase -> k v and q S; with the backward pass q do, S do, dS v and dS k as well.
    """
    if case.group not in ("gated", "additive", "additive_global"):
        return {FORWARD: 0.0, BOTH: 0.0}
    *tokens, size = case.shape
    products = float(np.prod(tokens, dtype=float)) * size**2
    return {FORWARD: 2 * products, BOTH: 6 * products}


def _all() -> Iterator[DeviceCase]:
    """First those that numbers are asked for, then those of research, then those of the peers."""
    linear, complex_ = partial(_case, "linear", functions.LINEAR), partial(_case, "linear", functions.COMPLEX)
    gated, per_head = (partial(_case, "gated", f) for f in (functions.GATED, functions.PER_HEAD))
    additive = partial(_case, "additive", functions.ADDITIVE)
    both_ways = partial(_case, "additive_global", functions.GLOBAL)
    selective = partial(_case, "selective", functions.SELECTIVE)
    half, single = "bfloat16", "float32"
    yield linear((8, 8192, 1536), half)
    yield both_ways((4, 4096, 16, 128), half)
    yield additive((4, 4096, 64, 128), half)
    yield gated((4, 4096, 64, 128), half)
    yield selective((8, 2048, 2048, 16), half)
    yield per_head((4, 4096, 64, 128), half)
    yield from (linear((8, 8192, 1536), single), linear((8, 2048, 1024), half), linear((1, 65536, 512), half))
    yield from (gated((8, 1024, 8, 64), half), gated((2, 4096, 8, 128), half), gated((2, 4096, 8, 128), single))
    yield from (additive((8, 1024, 8, 64), half), additive((2, 4096, 8, 128), half))
    yield additive((2, 4096, 8, 128), single)
    yield from (both_ways((64, 196, 6, 64), half), both_ways((16, 1024, 8, 64), half))
    yield from (both_ways((16, 1024, 8, 64), single), both_ways((4, 16384, 8, 64), half))
    yield from (selective((2, 8192, 1536, 16), half), selective((2, 8192, 1536, 16), single))
    yield from (per_head((8, 1024, 8, 64), half), complex_((8, 2048, 1024), single))
    yield from (gated((2, 16384, 16, 128), half), gated((8, 2048, 32, 256), half), gated((1, 8192, 96, 128), half))
    yield from (per_head((2, 16384, 16, 128), half), per_head((8, 2048, 32, 256), half))
    yield from (linear((4, 8192, 4096), half), selective((8, 2048, 5120, 16), half))
    yield from (additive((4, 8192, 32, 128), half), gated((4, 8192, 32, 128), half))
    yield from (gated((4, 2048, 16, 128), half), gated((1, 8192, 16, 128), half), selective((1, 65536, 1024, 16), half))
    yield from (linear((8, 1000, 1024), half), gated((2, 4097, 8, 128), half), linear((8, 2048, 1024), single))
    yield _case("linear", functions.CONSTANT, (8, 8192, 1536), half)
    yield _case("diagonal", functions.DIAGONAL, (8, 2048, 512, 16), single)
    yield _case("conv", functions.CONV, (8, 2048, 2048, 4), half)


def _case(group: str, function: Function, shape: Shape, dtype: str) -> DeviceCase:
    return DeviceCase(group, function.name, shape, dtype)


def _without_states(function: Function, operands: Operands) -> int:
    return len(operands) + function.in_state_precision


def _like(case: DeviceCase) -> list[jax.ShapeDtypeStruct]:
    """Operands of full size, without their numbers."""
    batch, length, *rest = case.shape
    arrays = drawn(replace(case, shape=(batch, min(length, 2), *rest)), 0)
    names = dtypes(case, [x for x, _ in arrays])
    return [
        jax.ShapeDtypeStruct((batch, length, *x.shape[2:]) if over_time else x.shape, jnp.dtype(name))
        for (x, over_time), name in zip(arrays, names, strict=True)
    ]


def _size(x: Any) -> int:
    return x.size * x.dtype.itemsize
