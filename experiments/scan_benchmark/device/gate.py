"""The gate on an accelerator: every form that shall be timed against the definition in double precision on the host.

The host draws the operands, has the definition's outputs and gradients, and compares; the device, in another process,
only computes. Besides the regimes of gates there is a packed batch, with segments and masked tokens that hold NaN.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.scan_benchmark import functions
from experiments.scan_benchmark.device.programs import differentiated
from experiments.scan_benchmark.device.worker import Failed, Refused
from experiments.scan_benchmark.functions import LOGITS, Function, Operands, Shape, rounded
from experiments.scan_benchmark.gate import BOUNDS, GROUPS, double, largest
from experiments.scan_benchmark.measure import cotangents_of

PACKED = "packed"
SECONDS = 120.0  # for one answer, the compiler's time with it
# Of every function one size that the kernels take: rows of 128 numbers, heads of 128, no multiple of any chunk.
SIZES: dict[str, Shape] = {
    functions.LINEAR.name: (2, 301, 256),
    functions.CONSTANT.name: (2, 301, 256),
    functions.COMPLEX.name: (2, 301, 256),
    functions.DIAGONAL.name: (2, 301, 128, 4),
    functions.SELECTIVE.name: (2, 301, 128, 16),
    functions.MAMBA.name: (2, 301, 128, 16),
    functions.GATED.name: (2, 301, 2, 128),
    functions.PER_HEAD.name: (2, 301, 2, 128),
    functions.ADDITIVE.name: (2, 301, 2, 128),
    functions.GLOBAL.name: (2, 301, 2, 128),
    functions.CONV.name: (2, 301, 128, 4),
}
TINY_LENGTH = 75
HALF_GRADIENT = 3e-2
# Where one key outweighs all others its gradient is a difference of nearly equal terms, each rounded to 2^-9.
STEEP, STEEP_GRADIENT = ("spread 50", "spread 1000"), 1e-1

Ask = Callable[..., Any]


@dataclass(frozen=True)
class DeviceCheck:
    """One form of one function in one regime.

    Attributes:
        function: name.
        implementation: the form.
        dtype: of its operands.
        regime: of its gates, or `PACKED`.
        error: of the outputs, relative, the largest; NaN if there are none.
        gradient_error: of the gradients of all operands.
        bounds: what both must be below.
        note: why there is nothing to compare.
        refused: whether that is because the form does not exist for these operands, which is no failure.
    """

    function: str
    implementation: str
    dtype: str
    regime: str
    error: float = math.nan
    gradient_error: float = math.nan
    bounds: tuple[float, float] = (0.0, 0.0)
    note: str = ""
    refused: bool = False

    @property
    def passed(self) -> bool:
        """Whether both errors are below their bounds; NaN is not."""
        return self.error < self.bounds[0] and self.gradient_error < self.bounds[1]

    @property
    def failed(self) -> bool:
        """Whether this form may not be timed though it exists."""
        return not self.passed and not self.refused


def chosen(groups: list[str]) -> list[Function]:
    """The functions of the groups, complex scans among the linear ones."""
    found = [function for group in groups for function in GROUPS[group]]
    return [*found, *([functions.COMPLEX] if "linear" in groups else [])]


def check_function(function: Function, implementations: list[str], ask: Ask, tiny: bool) -> Iterator[DeviceCheck]:
    """Compare all forms of a function in both precisions and all regimes.

    Args:
        function: which.
        implementations: forms.
        ask: `Worker.ask` of a process with the module `programs`.
        tiny: whether on sequences so short that it takes no time.

    Yields:
        The checks; of a form that is refused or fails, no more follow in that precision.
    """
    lost: set[str] = set()  # in one precision, and not tried in the other: a kernel that hangs costs the most
    for dtype in ("float32",) if function is functions.COMPLEX else BOUNDS:
        alive = [name for name in implementations if name not in lost]
        for regime, operands, cotangents, named in _regimes(function, dtype, tiny):
            truth = _truth(function, operands, cotangents, named)
            for implementation in list(alive):
                about = partial(DeviceCheck, function.name, implementation, dtype, regime)
                found = _compared(function, about, truth, ask, (operands, cotangents, named))
                yield found
                if found.note:
                    alive.remove(implementation)
                    lost |= set() if found.refused else {implementation}


def _compared(
    function: Function,
    about: Callable[..., DeviceCheck],
    truth: tuple[Operands, Operands],
    ask: Ask,
    arrays: tuple[Operands, Operands, Mapping[str, Any]],
) -> DeviceCheck:
    empty = about()
    host = jax.device_get(arrays)
    try:
        found = ask("outputs_and_gradients", SECONDS, function.name, empty.implementation, *host)
    except Refused as refusal:
        return about(note=str(refusal), refused=True)
    except Failed as failure:
        return about(note=str(failure))
    errors = [largest(x, y) for x, y in zip(found, truth, strict=True)]
    return about(*errors, bounds=_bounds(function, empty.dtype, empty.regime))


def _bounds(function: Function, dtype: str, regime: str) -> tuple[float, float]:
    bounds = BOUNDS[dtype]
    if dtype != "bfloat16":
        return bounds["value"], bounds["gradient"]
    steep = function.regimes == LOGITS and regime in STEEP
    return bounds["value"], STEEP_GRADIENT if steep else HALF_GRADIENT


def _regimes(
    function: Function, dtype: str, tiny: bool
) -> Iterator[tuple[str, Operands, Operands, Mapping[str, np.ndarray]]]:
    """Regime, operands, cotangents, and segments and mask."""
    batch, length, *rest = SIZES[function.name]
    shape = (batch, TINY_LENGTH if tiny else length, *rest)
    for regime in (*function.regimes, PACKED):
        random = np.random.default_rng(zlib.crc32(f"{function.name} {regime}".encode()))
        drawn = function.draw(shape, function.regimes[0] if regime == PACKED else regime, random)
        named: Mapping[str, np.ndarray] = {}
        if regime == PACKED:
            drawn, named = _packed(function, drawn, shape, random)
        operands = rounded(drawn, function, dtype)
        cotangents = cotangents_of(function.run, operands)
        if function.regimes == LOGITS and dtype == "bfloat16":
            # Rounded logits tie for the maximum of a state, and each of them may take its gradient.
            cotangents = (cotangents[0], *(jax.numpy.zeros_like(x) for x in cotangents[1:]))
        yield regime, operands, cotangents, named


def _packed(
    function: Function, operands: Operands, shape: Shape, random: np.random.Generator
) -> tuple[Operands, Mapping[str, np.ndarray]]:
    """Segments of a few tokens, and NaN at a tenth of the tokens, which are masked; a function without order has no
    more than the mask.
    """
    mask = random.random(shape[:2]) > 0.1
    masked = tuple(
        np.where(mask.reshape(*mask.shape, *(1 for _ in x.shape[2:])), x, np.nan) if x.shape[:2] == shape[:2] else x
        for x in operands
    )
    named = {"mask": mask}
    if function is not functions.GLOBAL:
        named["segment_ids"] = np.cumsum(random.random(shape[:2]) < 0.05, axis=1).astype(np.int32)
    return masked, named


def _truth(
    function: Function, operands: Operands, cotangents: Operands, named: Mapping[str, Any]
) -> tuple[Operands, Operands]:
    with jax.enable_x64(True):
        exact = differentiated(function.name, "reference")
        return jax.device_get(exact(*map(double, (operands, cotangents)), dict(named)))
