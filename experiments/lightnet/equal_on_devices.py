"""How far a loss and its gradients on a mesh are from those on one device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from experiments.training.config import MeshConfig
    from experiments.training.task import Task


def distance_from_one_device(task: Task, batch: Mapping[str, np.ndarray], sizes: MeshConfig, seed: int) -> float:
    """Compute both on the devices of this process.

    Args:
        task: of the model and its loss.
        batch: examples.
        sizes: of the mesh.
        seed: of the initial values.

    Returns:
        See `distance`.
    """
    import flax.linen as nn
    import jax

    from experiments.training.mesh import batch_sharding, make_mesh, state_shardings

    key = jax.random.key(seed)

    def found(variables: Any, batch: Any) -> Any:
        differentiate = jax.value_and_grad(lambda variables, batch: task.loss(variables, batch, key)[0])
        return jax.device_get(jax.jit(differentiate)(variables, batch))

    variables = nn.meta.unbox(jax.jit(task.init)(key))
    whole = found(variables, batch)
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        shardings = state_shardings(jax.eval_shape(task.init, key), mesh)
        split = found(jax.device_put(variables, shardings), jax.device_put(batch, batch_sharding(mesh)))
    return distance(split, whole)


def distance(found: tuple[Any, Any], expected: tuple[Any, Any]) -> float:
    """Of a loss and gradients from others.

    Args:
        found: both, the gradients as a pytree.
        expected: both.

    Returns:
        The largest distance of the loss or of a parameter's gradient, relative to what is expected; gradients below a
        thousandth of the whole count as that large.

    Example:
        >>> distance((1.5, np.ones(4)), (1.0, np.ones(4)))
        0.5
    """
    import jax

    leaves, others = (jax.tree.leaves(gradients) for _, gradients in (found, expected))
    least = 1e-3 * float(np.sqrt(sum((leaf.astype(float) ** 2).sum() for leaf in others)))
    distances = [abs(found[0] - expected[0]) / abs(expected[0])]
    for leaf, other in zip(leaves, others, strict=True):
        distances.append(np.linalg.norm(leaf - other) / max(float(np.linalg.norm(other)), least))
    return float(np.max(distances))
