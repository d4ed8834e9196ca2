"""Parameters of equal blocks, one by one or stacked along a leading axis, and the loop over stacked ones."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

BLOCKS = "blocks"
AXIS = "layers"


def over_layers(apply: Callable[..., Any], num_layers: int) -> Callable[..., Any]:
    """A loop over stacked blocks, of which one is compiled.

    Args:
        apply: (block, carry, its part of what is stacked, what is the same for all) -> (carry, its part of the output).
        num_layers: blocks.

    Returns:
        (blocks, carry, stacked, same) -> (carry, stacked output).
    """
    return nn.scan(
        apply,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: AXIS},
    )


def stack_layers(variables: Any) -> Any:
    """Parameters as a model with `scan_layers` has them, from those of the same model without it.

    Args:
        variables: nested mappings with `blocks_0`, `blocks_1` and so on beside each other; without boxes of axis names.

    Returns:
        The same with one `blocks` instead, each leaf stacked along axis 0.

    Example:
        >>> params = {"blocks_0": {"scale": jnp.ones(3)}, "blocks_1": {"scale": jnp.zeros(3)}}
        >>> stack_layers(params)["blocks"]["scale"].shape
        (2, 3)
    """
    if not isinstance(variables, Mapping):
        return variables
    names = [f"{BLOCKS}_{i}" for i in range(len(variables)) if f"{BLOCKS}_{i}" in variables]
    rest = {name: stack_layers(value) for name, value in variables.items() if name not in names}
    if not names:
        return rest
    return {**rest, BLOCKS: stacked([variables[name] for name in names])}


def unstack_layers(variables: Any) -> Any:
    """`stack_layers` the other way round.

    Args:
        variables: nested mappings with stacked `blocks`.

    Returns:
        The same with `blocks_0`, `blocks_1` and so on instead.

    Example:
        >>> sorted(unstack_layers({"blocks": {"scale": jnp.ones((2, 3))}, "norm": jnp.ones(3)}))
        ['blocks_0', 'blocks_1', 'norm']
    """
    if not isinstance(variables, Mapping):
        return variables
    rest = {name: unstack_layers(value) for name, value in variables.items() if name != BLOCKS}
    if BLOCKS not in variables:
        return rest
    layers = unstacked(variables[BLOCKS], len(jax.tree.leaves(variables[BLOCKS])[0]))
    return {**rest, **{f"{BLOCKS}_{i}": layer for i, layer in enumerate(layers)}}


def stacked(trees: Any) -> Any:
    """One tree of several alike, each leaf with a leading axis more.

    Example:
        >>> stacked([{"a": jnp.zeros(2)}, {"a": jnp.ones(2)}])["a"].shape
        (2, 2)
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstacked(tree: Any, count: int) -> tuple[Any, ...]:
    """`stacked` the other way round.

    Example:
        >>> [part["a"].tolist() for part in unstacked({"a": jnp.arange(2)}, 2)]
        [0, 1]
    """
    return tuple(jax.tree.map(itemgetter(i), tree) for i in range(count))
