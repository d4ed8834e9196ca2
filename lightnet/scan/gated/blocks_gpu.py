"""How the kernels of gated linear attention for Hopper GPUs cut up their arrays: by heads, chunks and columns."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.typing import Array

CHUNK, COLUMNS = 64, 64  # tokens of a chunk, and columns of the values that a program takes
STAGES = 2  # chunks in shared memory


def march(body: Callable, v: Array, initial_state: Array, *, store: bool) -> Callable:
    """A kernel from the first chunk to the last, each program with 64 columns of the values of one head.

    Args:
        body: takes references to inputs, outputs and two tiles: the state in half precision, and values or outputs.
        v: (B, L, H, V).
        initial_state: (B, H, K, V).
        store: whether the third output is the states before each chunk in half precision, (B, H, chunks, K, V).

    Returns:
        Its inputs -> outputs, last state, and the states before each chunk if they are stored.
    """
    batch, heads, key, value = initial_state.shape
    before = jax.ShapeDtypeStruct((batch, heads, pl.cdiv(v.shape[1], CHUNK), key, value), jnp.bfloat16)
    outputs = [jax.ShapeDtypeStruct(v.shape, v.dtype), jax.ShapeDtypeStruct(initial_state.shape, jnp.float32)]
    return _by_columns(body, "march", [*outputs, *[before] * store], tiles=2)


def march_back(body: Callable, before: Array, dfinal: Array, *, tiles: int) -> Callable:
    """The same from the last chunk to the first.

    Args:
        body: takes references to inputs, outputs and as many of the two tiles.
        before: states before each chunk, like which the gradients behind each chunk are.
        dfinal: gradient of the last state.
        tiles: that the body needs.

    Returns:
        Its inputs -> gradients of the states behind each chunk, and of the initial one.
    """
    return _by_columns(body, "march_back", [before, jax.ShapeDtypeStruct(dfinal.shape, jnp.float32)], tiles=tiles)


def _by_columns(body: Callable, name: str, outputs: list, *, tiles: int) -> Callable:
    batch, heads, key, value = outputs[1].shape
    return plgpu.kernel(
        body,
        out_type=outputs,
        scratch_types=[hopper.tile(rows, COLUMNS) for rows in (key, CHUNK)[:tiles]],
        grid=(batch, heads, value // COLUMNS),
        grid_names=("batch", "head", "columns"),
        kernel_name=name,
    )


def block(size: int, where: Any, dtype: Any = jnp.bfloat16) -> Any:
    """A chunk of one head of an array (B, L, heads, sizes)."""
    return plgpu.BlockSpec((None, CHUNK, None, size), where, transforms=hopper.swizzled(size, dtype))


def square_block(where: Any) -> Any:
    """A chunk of one head of an array (B, H, chunks, C, C)."""
    return plgpu.BlockSpec((None, None, None, CHUNK, CHUNK), where, transforms=hopper.swizzled(CHUNK))


def indices(columns: int) -> tuple[Array, Array]:
    """Those of the rows and of the columns of a matrix of `CHUNK` rows."""
    return hopper.index((CHUNK, columns), 0), hopper.index((CHUNK, columns), 1)


def per_row(x: Array) -> Array:
    """A number per row of a tile, in all its columns."""
    return hopper.of_rows(x, COLUMNS)


def state_of(ref: Any) -> tuple[Array, ...]:
    """The parts of a state (K, columns) in the memory of the device."""
    return tuple(hopper.load_anywhere(ref.at[part]) for part in hopper.parts_of(ref.shape[0]))


def write_state(ref: Any, state: tuple[Array, ...]) -> None:
    """In the precision of the reference."""
    for part, x in zip(hopper.parts_of(ref.shape[0]), state, strict=True):
        ref[part] = x.astype(ref.dtype)


def send(x: Array, near: Any, far: Any) -> None:
    """To the memory of the device, by a copy from shared memory once all before has left."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    near[...] = x.astype(near.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(near, far)
