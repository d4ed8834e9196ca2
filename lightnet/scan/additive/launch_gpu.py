"""What LightNet's kernels for Hopper GPUs take, and how they are launched. A program takes one head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.typing import Array


def refusal(q: Any, logits: Any, v: Any) -> str | None:
    """Why no kernel can run these; None if they can."""
    key, value = logits.shape[3], v.shape[3]
    if wrong := hopper.not_half(q, logits, v):
        return wrong
    if key not in hopper.SIZES or value not in hopper.SIZES:
        return f"sizes {key} and {value} of a head are not 64 or 128"
    return None


def aligned(x: Array, filling: float = 0.0) -> Array:
    """(B, L, H, size) with L a multiple of the rows of a tile."""
    return hopper.aligned(x, 1, hopper.TILE, filling)


def kernel(
    body: Callable,
    outputs: list,
    grid: dict[str, int],
    scratch: tuple = (),
    semantics: plgpu.LoweringSemantics = plgpu.LoweringSemantics.Warpgroup,
    **static: Any,
) -> Callable:
    """A kernel whose body takes references to inputs, outputs and scratch, and static arguments by name."""
    return plgpu.kernel(
        partial(body, **static),
        out_type=outputs,
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        kernel_name=body.__name__.strip("_"),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=semantics),
    )


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """Of an output."""
    return jax.ShapeDtypeStruct(sizes, dtype)
