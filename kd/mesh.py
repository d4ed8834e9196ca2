"""How tokens and vocabulary lie on the mesh that `jax.set_mesh` has set.

The batch is split over `data` and `fsdp`, the sequence over `sequence`, the vocabulary over `tensor`, each as far as
the mesh has these axes and the size divides.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, PartitionSpec

BATCH, SEQUENCE, VOCABULARY = ("data", "fsdp"), ("sequence",), ("tensor",)


class Placement(NamedTuple):
    """Which axes of the mesh split what.

    Attributes:
        tokens: those of each axis of the tokens.
        vocabulary: those of the vocabulary.
        manual: all that `jax.shard_map` takes.
        explicit: whether arrays have to be laid out before.
    """

    tokens: tuple[tuple[str, ...], ...]
    vocabulary: tuple[str, ...]
    manual: frozenset[str]
    explicit: bool


def placement(tokens: tuple[int, ...], vocabulary: int) -> Placement | None:
    """Where the arrays of a call go, or None where there are no devices to choose from.

    Args:
        tokens: sizes of their axes.
        vocabulary: its size.

    Returns:
        The placement.

    Example:
        >>> placement((4, 8), 100) is None
        True
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    free = {name: kind for name, kind in kinds if kind != AxisType.Manual}
    sizes = {name: mesh.shape[name] for name in free}
    if all(size == 1 for size in sizes.values()):
        return None
    wanted = (BATCH, SEQUENCE, *((),) * len(tokens))
    split = tuple(_divisors(names, size, sizes) for names, size in zip(wanted, tokens, strict=False))
    explicit = AxisType.Explicit in free.values()
    return Placement(split, _divisors(VOCABULARY, vocabulary, sizes), frozenset(free), explicit)


def laid_out(x: Any, spec: PartitionSpec, placed: Placement) -> Any:
    """The array split like that, where the mesh asks for it."""
    return jax.sharding.reshard(x, spec) if placed.explicit else x


def _divisors(wanted: tuple[str, ...], length: int, sizes: dict[str, int]) -> tuple[str, ...]:
    """The axes of the mesh, without the last ones while the length is not a multiple."""
    names = tuple(name for name in wanted if name in sizes)
    while length % math.prod(sizes[name] for name in names):
        names = names[:-1]
    return names
