"""How the kernels of gated linear attention for Hopper GPUs cut up their arrays: by heads, chunks and columns."""

from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.typing import Array

CHUNK, COLUMNS = 64, 64  # tokens of a chunk, and columns of the values that a program takes
STAGES = 2  # chunks in shared memory


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
