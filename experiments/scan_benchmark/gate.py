"""The gate before the clock: every function against its definition in double precision, in every regime of gates."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.scan_benchmark import functions
from experiments.scan_benchmark.functions import Function, Operands, rounded
from experiments.scan_benchmark.measure import cotangents_of, relative_error

# Lengths that are no multiple of any chunk.
SIZES = {
    functions.LINEAR: (2, 301, 24),
    functions.CONSTANT: (2, 301, 24),
    functions.DIAGONAL: (2, 301, 12, 4),
    functions.SELECTIVE: (2, 301, 12, 4),
    functions.MAMBA: (2, 301, 12, 4),
    functions.GATED: (2, 301, 2, 12),
    functions.PER_HEAD: (2, 301, 2, 12),
    functions.ADDITIVE: (2, 301, 2, 12),
    functions.GLOBAL: (2, 301, 2, 12),
    functions.CONV: (2, 301, 24, 4),
}
GROUPS = {
    "linear": (functions.LINEAR, functions.CONSTANT),
    "diagonal": (functions.DIAGONAL,),
    "selective": (functions.SELECTIVE, functions.MAMBA),
    "gated": (functions.GATED, functions.PER_HEAD),
    "additive": (functions.ADDITIVE,),
    "additive_global": (functions.GLOBAL,),
    "conv": (functions.CONV,),
}
# Of gradients in bfloat16 only NaN is refused: rounded logits tie for their maximum, and each of them may take its
# gradient. All others are within 1e-2; the tests hold them there.
BOUNDS = {"float32": {"value": 2e-6, "gradient": 1e-5}, "bfloat16": {"value": 1e-2, "gradient": math.inf}}
NEGLIGIBLE = 1e-6  # what is so much smaller than the largest array is compared on that scale: it is rounding alone


@dataclass(frozen=True)
class Check:
    """The largest error of one kind.

    Attributes:
        function: name.
        regime: of its gates.
        dtype: of its operands.
        kind: "value" or "gradient".
        error: relative, in the Frobenius norm; the largest over all outputs, or over the gradients of all operands.
        bound: what it must be below.
    """

    function: str
    regime: str
    dtype: str
    kind: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is below the bound; NaN is not."""
        return self.error < self.bound


def check(chosen: Sequence[Function]) -> list[Check]:
    """Compare with the reference in double precision, whose operands are the rounded ones.

    Args:
        chosen: functions.

    Returns:
        A check of values and one of gradients for each function, precision and regime.
    """
    return [found for function in chosen for found in _checks(function)]


def _checks(function: Function) -> Iterator[Check]:
    exact = _with_gradients(partial(function.run, implementation="reference"))
    tested = _with_gradients(function.run)
    for dtype, bounds in BOUNDS.items():
        cotangents = cotangents_of(function.run, _operands(function, function.regimes[0], dtype))
        for regime in function.regimes:
            operands = _operands(function, regime, dtype)
            values, gradients = tested(operands, cotangents)
            with jax.enable_x64(True):
                true_values, true_gradients = exact(*map(double, (operands, cotangents)))
            errors = {"value": largest(values, true_values), "gradient": largest(gradients, true_gradients)}
            for kind, error in errors.items():
                yield Check(function.name, regime, dtype, kind, error, bounds[kind])


def _operands(function: Function, regime: str, dtype: str) -> Operands:
    random = np.random.default_rng(zlib.crc32(f"{function.name} {regime}".encode()))
    return rounded(function.draw(SIZES[function], regime, random), function, dtype)


def _with_gradients(run: Callable[..., Operands]) -> Callable[[Operands, Operands], tuple[Operands, Operands]]:
    """Outputs, and gradients of all operands for cotangents of all outputs."""

    @jax.jit
    def both(operands: Operands, cotangents: Operands) -> tuple[Operands, Operands]:
        outputs, transpose = jax.vjp(lambda *x: tuple(run(*x)), *operands)
        return outputs, transpose(cotangents)

    return both


def double(arrays: Operands) -> Operands:
    """The arrays in double precision, which must be enabled."""
    return tuple(jax.numpy.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64) for x in arrays)


def largest(found: Operands, expected: Operands) -> float:
    """The largest error of arrays; NaN if one is.

    Args:
        found: arrays.
        expected: what they should be.

    Returns:
        The error, relative to each array, or to what is negligible beside the largest.
    """
    scale = max(float(np.linalg.norm(np.asarray(x))) for x in expected)
    errors: list[Any] = [relative_error(x, y, NEGLIGIBLE * scale) for x, y in zip(found, expected, strict=True)]
    return float(np.max(errors))
