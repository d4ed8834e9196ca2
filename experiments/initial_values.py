"""Initial values of models much narrower than those that the library's are meant for."""

from __future__ import annotations

from typing import Any

import jax

# Of Mamba's mixer, whose published initial values depend on the width by themselves.
_KEPT = {"in_proj", "x_proj", "dt_proj", "conv1d"}


def for_narrow_models(params: Any, width: int) -> Any:
    """Embeddings and kernels that begin with a standard deviation of 0.02, as in GPT-2, made 1 / (0.02 sqrt(D)) larger.

    0.02 is about D^-1/2 at a width of 2500. At a width of 32 or 64 each block would begin close to the identity, and
    tokens so small beside what positions add to them that a few hundred updates are spent on growing.

    Args:
        params: of one model. Leaves called "kernel" inside of blocks, and those called "embedding", change.
        width: channels D.

    Returns:
        The parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> for_narrow_models({"blocks_0": {"kernel": jnp.ones(1), "scale": jnp.ones(1)}}, 25)["blocks_0"]
        {'kernel': Array([10.], dtype=float32), 'scale': Array([1.], dtype=float32)}
    """

    def scaled(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [entry.key for entry in path if hasattr(entry, "key")]
        in_block = "kernel" in names and any(name.startswith("blocks") for name in names) and not _KEPT & set(names)
        return leaf / (0.02 * width**0.5) if in_block or names[-1] == "embedding" else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)
