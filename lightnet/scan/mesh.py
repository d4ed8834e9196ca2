"""The mesh that `jax.set_mesh` has set, and arrays whose types say how they lie on it."""

import jax
from jax.sharding import AxisType, PartitionSpec

from lightnet.typing import Array


def axis_types() -> dict[str, AxisType]:
    """The axes of the mesh that is set, without those that a surrounding `jax.shard_map` has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: kind for name, kind in kinds if kind != AxisType.Manual}


def lie(x: Array, split: PartitionSpec) -> Array:
    """The array split like that over the explicit axes of the mesh; automatic ones decide for themselves."""
    explicit = {name for name, kind in axis_types().items() if kind == AxisType.Explicit}
    if not explicit:
        return x
    names = [(axes,) if isinstance(axes, str) else axes or () for axes in split]
    kept = [tuple(name for name in axes if name in explicit) or None for axes in names]
    return jax.sharding.reshard(x, PartitionSpec(*kept))
