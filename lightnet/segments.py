"""Packed and padded batches: which tokens belong together, and where each of them stands.

Two rules hold everywhere in this project. A segment is a maximal run of equal ids, whatever the ids are. A masked token
does not exist: it neither ends a run nor takes a position, so that padding on the left, on the right or in between is
exact.
"""

import jax
import jax.numpy as jnp

from lightnet.typing import Array


def run_index(segment_ids: Array, mask: Array | None = None) -> Array:
    """Number the runs of equal segment ids from 0 in each row.

    Args:
        segment_ids: (B, L) integers; any values.
        mask: (B, L), true at real tokens. A masked token gets the number of the real token before it.

    Returns:
        (B, L) int32, non-decreasing along L.

    Example:
        >>> run_index(jnp.array([[7, 7, 3, 3, 7]])).tolist()
        [[0, 0, 1, 1, 2]]
        >>> run_index(jnp.array([[7, 0, 7]]), jnp.array([[True, False, True]])).tolist()
        [[0, 0, 0]]
    """
    if mask is None:
        changed = segment_ids[:, 1:] != segment_ids[:, :-1]
        return jnp.cumsum(jnp.pad(changed, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    last_real = jax.lax.cummax(jnp.where(mask, index, -1), axis=1)
    before = jnp.pad(last_real[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous_id = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    changed = mask & (before >= 0) & (segment_ids != previous_id)
    return jnp.cumsum(changed, axis=1, dtype=jnp.int32)


def token_positions(run: Array, mask: Array, offset: Array) -> Array:
    """Position of each token in its run, counting real tokens only.

    Args:
        run: (B, L) from `run_index`.
        mask: (B, L), true at real tokens.
        offset: (B,) real tokens that came before this call; they belong to the first run.

    Returns:
        (B, L) int32. At a masked token, the position that the next real token of its run has.

    Example:
        >>> run, mask = jnp.array([[0, 0, 1, 1]]), jnp.array([[False, True, True, True]])
        >>> token_positions(run, mask, jnp.array([5])).tolist()
        [[5, 5, 0, 1]]
    """
    before = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - mask
    starts = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (1, 0)))
    # `before` never decreases, so the running maximum carries its value at the newest start of a run.
    run_start = jax.lax.cummax(jnp.where(starts, before, 0), axis=1)
    return before - run_start + jnp.where(run == 0, offset[:, None], 0)
