"""What the kernels for Hopper GPUs share: tiles in shared memory, layouts in registers, products on the tensor cores.

A program is one warpgroup, 128 threads. Mosaic puts barriers between what its threads read, write and copy, unless it
is told otherwise; what they write and tensor cores or copies read is followed by `commit_smem`.
"""

import inspect
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.typing import Array

PROCESSORS = 132
ROWS = 64  # of a product on the tensor cores
SIZES = (64, 128)  # of a head: rows of products come in 64, and more would not fit the registers
TILE = 8  # rows of a tile in shared memory
# Entries of a matrix over the threads, also with its axes exchanged, and of vectors as long as its rows and its columns
# are many.
MATRIX = plgpu.Layout.WGMMA
TRANSPOSED = plgpu.Layout.WGMMA_TRANSPOSED
PER_ROW, PER_COLUMN = MATRIX.reduce(1), MATRIX.reduce(0)


def not_half(*arrays: Any) -> str | None:
    """Why the tensor cores cannot take these; None if they can."""
    wrong = [x.dtype.name for x in arrays if x.dtype != jnp.bfloat16]
    return f"{wrong[0]} is not bfloat16, and tensor cores would round it" if wrong else None


def aligned(x: Array, axis: int, multiple: int, filling: float = 0.0) -> Array:
    """With a number behind the end of an axis, if need be, so that copies and tiles fit.

    Example:
        >>> aligned(jnp.ones((2, 17)), 1, 16).shape
        (2, 32)
    """
    missing = [(0, 0)] * x.ndim
    missing[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, missing, constant_values=filling) if any(missing[axis]) else x


def parts_of(size: int) -> list[Any]:
    """The rows or columns of a matrix, as many at a time as a product has rows."""
    return [pl.ds(i, ROWS) for i in range(0, size, ROWS)]


def tile(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
    """Matrices in shared memory that tensor cores read."""
    return plgpu.SMEM(shape, dtype, transforms=swizzled(shape[-1], dtype))


def swizzled(columns: int, dtype: Any = jnp.bfloat16) -> tuple[Any, Any]:
    """How tensor cores want rows of so many numbers."""
    bytes_each = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(8 * bytes_each * columns)
    return plgpu.TilingTransform((TILE, swizzle // bytes_each)), plgpu.SwizzleTransform(swizzle)


def load(ref: Any, layout: Any = MATRIX) -> Array:
    """From shared memory."""
    return plgpu.layout_cast(ref[...], layout)


def read(ref: Any, layout: Any = MATRIX) -> Array:
    """The same in float32."""
    return load(ref, layout).astype(jnp.float32)


def read_transposed(ref: Any) -> Array:
    """The same of a matrix with its axes exchanged."""
    return plgpu.layout_cast(load(transposed(ref), TRANSPOSED), MATRIX).astype(jnp.float32)


def write_transposed(ref: Any, x: Array) -> None:
    """A matrix with its axes exchanged, into shared memory."""
    transposed(ref)[...] = plgpu.layout_cast(x.astype(ref.dtype), TRANSPOSED)


def transposed(ref: Any) -> Any:
    """A matrix in shared memory, which tensor cores read as it lies."""
    return ref.transpose((1, 0))


def load_anywhere(ref: Any) -> Array:
    """A matrix in any memory, entry by entry. JAX 0.10 takes an index between reference and options."""
    index = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()
    return plgpu.load(ref, *index, layout=MATRIX, optimized=False)


def fetch(ref: Any, shape: tuple[int, ...], layout: Any = MATRIX) -> Array:
    """What lies in the memory of the device, in float32, by a copy to shared memory."""

    def copy(here: Any, barrier: Any) -> Array:
        plgpu.copy_gmem_to_smem(ref, here, barrier)
        plgpu.barrier_wait(barrier)
        return load(here, layout)

    tiles = swizzled(shape[-1], jnp.float32) if len(shape) == 2 else ()
    return pl.run_scoped(copy, plgpu.SMEM(shape, jnp.float32, transforms=tiles), plgpu.Barrier())


def index(shape: tuple[int, ...], axis: int) -> Array:
    """Of the rows (axis 0) or the columns (axis 1) of a matrix."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=MATRIX)


def filled(shape: tuple[int, ...], number: float, layout: Any = MATRIX) -> Array:
    """The same number everywhere."""
    return plgpu.layout_cast(jnp.full(shape, number, jnp.float32), layout)


def of_rows(x: Array, columns: int) -> Array:
    """A number per row, in so many columns."""
    return lax.broadcast_in_dim(x, (x.shape[0], columns), [0])


def of_columns(x: Array, rows: int) -> Array:
    """A number per column, in so many rows."""
    return lax.broadcast_in_dim(x, (rows, x.shape[0]), [1])


def total(x: Array, axis: int) -> Array:
    """Of rows (axis 1) or columns (axis 0) of a matrix."""
    return plgpu.layout_cast(x.sum(axis=axis), MATRIX.reduce(axis))


def inverse(x: Array) -> Array:
    """1 / x of positive numbers in two operations; a division takes ten."""
    root = lax.rsqrt(x)
    return root * root


def product(x: Any, *ys: Any) -> Array:
    """The sum of x y, in float32; x is in shared memory or in registers, each y in shared memory."""

    def compute(total: Any) -> Array:
        for y in ys:
            plgpu.wgmma(total, x, y)
        return total[...]

    return pl.run_scoped(compute, plgpu.ACC((x.shape[0], ys[0].shape[1]), jnp.float32))


def add_product(total: Array, x: Any, y: Any) -> Array:
    """total + x y, without a copy of the total."""
    return pl.run_state(lambda total: plgpu.wgmma(total, x, y))(plgpu.ACC.init(total))
