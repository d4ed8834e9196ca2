"""Models of equal size: the width of a GLU with which a model has as many parameters as another.

Importing this module imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def count_parameters(model: Any, *inputs: Any) -> int:
    """Parameters of a model, by tracing its initialisation.

    Args:
        model: a linen module.
        *inputs: what it is called with; only shape and dtype matter.

    Returns:
        Their number.

    Example:
        >>> import flax.linen as nn
        >>> import jax.numpy as jnp
        >>> count_parameters(nn.Dense(3), jnp.zeros((1, 2)))
        9
    """
    import jax

    from lightnet.scan.dispatch import lowered_for

    with lowered_for("cpu"):  # kernels, which take the longest to trace, have no parameters
        shapes = jax.eval_shape(_looped(model).init, jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _looped(model: Any) -> Any:
    """The same model, of whose equal blocks one is traced in place of all, if it says that it has such blocks."""
    backbone = getattr(model, "backbone", None)
    return model if backbone is None else model.clone(backbone=backbone.clone(scan_layers=True))


def hidden_for(count: Callable[[int], int], parameters: int) -> int:
    """Width of the GLU with which a model has about as many parameters as asked for.

    Args:
        count: width -> parameters, a straight line.
        parameters: how many there shall be.

    Returns:
        The width, at least 1: a model that has more even without a GLU gets one unit and stays larger.

    Example:
        >>> hidden_for(lambda hidden: 100 + 6 * hidden, 200)
        17
    """
    first = count(1)
    return max(1, 1 + round((parameters - first) / (count(2) - first)))
