"""The device mesh, and the one table that maps a model's logical axes to it."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.errors import UserError
from experiments.training.config import MeshConfig

AXES = ("data", "fsdp", "tensor", "sequence")

LOGICAL_AXIS_RULES = (
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("head_size", None),
    ("layers", None),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arrange the devices along the axes data, fsdp, tensor and sequence.

    Devices of several slices, which the network of the data centre connects, are arranged so that only the axis data
    crosses from one slice to another; fsdp crosses too where data is smaller than the number of slices.

    Args:
        config: sizes; one may be -1 and takes what is left.
        devices: defaults to all.

    Returns:
        The mesh, all axes automatic: `jit` decides how an operation is split from the shardings of its inputs.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or cannot be cut into the slices.

    Example:
        >>> make_mesh(MeshConfig(), jax.devices()[:1]).shape["data"]
        1
    """
    devices = jax.devices() if devices is None else devices
    asked = [getattr(config, axis) for axis in AXES]
    rest = len(devices) // math.prod(size for size in asked if size != -1)
    sizes = [rest if size == -1 else size for size in asked]
    if math.prod(sizes) != len(devices):
        shape = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, asked, strict=True))
        raise UserError(f"mesh: {shape} does not multiply to the {len(devices)} devices there are")
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # A torus of 4 x 4 x 8 chips has an axis of 2 only as a part of one of its own.
        return Mesh(create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES, axis_types=types)
    between = _between_slices(sizes, slices)
    within = [size // part for size, part in zip(sizes, between, strict=True)]
    return Mesh(create_hybrid_device_mesh(within, between, devices), AXES, axis_types=types)


def _between_slices(sizes: Sequence[int], slices: int) -> list[int]:
    """How often each axis crosses from one slice to another."""
    data = math.gcd(sizes[0], slices)
    fsdp = slices // data
    if sizes[1] % fsdp:
        raise UserError(f"mesh: data {sizes[0]}, fsdp {sizes[1]} cannot be cut into the {slices} slices there are")
    return [data, fsdp, *[1] * (len(sizes) - 2)]


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Split the leading axis of a batch over the axes data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(abstract_state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings of a state from the logical axis names that its leaves carry; leaves without names are replicated.

    Args:
        abstract_state: `jax.eval_shape` of the state, its parameters boxed by `nn.with_logical_partitioning`.
        mesh: from `make_mesh`.

    Returns:
        A pytree of `NamedSharding` like the unboxed state. An axis that a mesh axis does not divide stays whole.
    """
    # The optimizer of one parameter group has boxes with nothing inside in the places of the others.
    abstract_state = jax.tree.map(
        lambda box: box if jax.tree.leaves(box) else nn.meta.unbox(box),
        abstract_state,
        is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
    )
    specs = nn.logical_to_mesh(nn.get_partition_spec(abstract_state), LOGICAL_AXIS_RULES)
    shapes = nn.meta.unbox(abstract_state)

    def fit(leaf: jax.ShapeDtypeStruct, spec: PartitionSpec | None) -> NamedSharding:
        names = tuple(spec or ())
        sizes = leaf.shape[: len(names)]
        kept = [n if n and size % _size(mesh, n) == 0 else None for size, n in zip(sizes, names, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*kept))

    return jax.tree.map(fit, shapes, specs)


def _size(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in ((axes,) if isinstance(axes, str) else axes))
