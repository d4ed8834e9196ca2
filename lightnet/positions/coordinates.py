"""Where each token stands: on a grid, or in its sequence."""

import math

import jax.numpy as jnp
import numpy as np

from lightnet.scan.checks import ArrayInput, as_arrays, check_per_token, got
from lightnet.segments import run_index, token_positions
from lightnet.typing import Array


def check_grid(grid: tuple[int, ...]) -> None:
    """Refuse what is no tuple of positive integers.

    Raises:
        ValueError: with what was given.
    """
    if not grid or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ValueError(f"grid: got {grid!r}, expected one positive integer or more")


def grid_coordinates(grid: tuple[int, ...], num_extra: int = 0) -> Array:
    """Coordinates of the tokens of a grid, flattened row by row: the last axis is the fastest.

    Args:
        grid: size along each of the A axes.
        num_extra: tokens before the grid that have no place on it (a class token, a condition). Their coordinates are
            0, which gives them the angle 0.

    Returns:
        (num_extra + product of the grid, A) int32.

    Raises:
        ValueError: the grid is empty, a size is not positive, or there are less than no further tokens.

    Example:
        >>> grid_coordinates((2, 2), num_extra=1).tolist()
        [[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check_grid(grid)
    if num_extra < 0:
        raise ValueError(f"num_extra: got {num_extra}, expected at least 0")
    places = np.indices(grid, np.int32).reshape(len(grid), math.prod(grid)).T
    return jnp.asarray(np.concatenate([np.zeros((num_extra, len(grid)), np.int32), places]))


def token_coordinates(
    length: int, *, segment_ids: ArrayInput = None, mask: ArrayInput = None, offset: ArrayInput = None
) -> Array:
    """Positions of the tokens of a sequence as coordinates with one axis.

    They restart at each segment and count real tokens only, so that a packed or padded batch gets the positions of its
    sequences by themselves. The offset that goes on behind these tokens is `coordinates[:, -1, 0] + mask[:, -1]`, with
    1 in place of the mask where there is none.

    Args:
        length: number of tokens L.
        segment_ids: (B, L) integers; a segment is a maximal run of equal ids.
        mask: (B, L), true at real tokens.
        offset: (B,) integers: real tokens that came before, in the first segment.

    Returns:
        (B, L, 1) int32, or (1, L, 1) where all rows are alike.

    Raises:
        ValueError: a shape or kind is another than stated.

    Example:
        >>> ids = jnp.array([[3, 3, 8]])
        >>> token_coordinates(3, segment_ids=ids, offset=jnp.array([10]))[..., 0].tolist()
        [[10, 11, 0]]
        >>> token_coordinates(3).shape
        (1, 3, 1)
    """
    segment_ids, mask, offset = as_arrays(segment_ids=segment_ids, mask=mask, offset=offset)
    if offset is not None and (offset.ndim != 1 or not jnp.issubdtype(offset.dtype, jnp.integer)):
        raise ValueError(f"offset: got {got(offset)}, expected an integer array (B)")
    batch = next((a.shape[0] for a in (segment_ids, mask, offset) if a is not None and a.ndim), 1)
    check_per_token({"B": batch, "L": length}, segment_ids, mask)
    offset = jnp.zeros(batch, jnp.int32) if offset is None else offset.astype(jnp.int32)
    if offset.shape != (batch,):
        raise ValueError(f"offset: got {got(offset)}, expected an integer array ({batch},)")
    if segment_ids is None and mask is None:
        # Running sums over a sequence that a mesh splits would gather it on every device.
        return (offset[:, None] + jnp.arange(length, dtype=jnp.int32)[None])[..., None]
    real = jnp.ones((batch, length), bool) if mask is None else mask
    run = jnp.zeros((batch, length), jnp.int32) if segment_ids is None else run_index(segment_ids, mask)
    return token_positions(run, real, offset)[..., None]
