"""Which part of the arrays of a call each device of the mesh gets: a table, and shapes that divide.

Axes go by their letters. A sequence is padded with masked tokens until it divides; any other axis that does not divide
is not split. Axes of the mesh that are then left over, or that the table does not name, stay as they are, automatic; if
they are explicit they hold copies, because the loops of the recurrences index arrays in ways that types do not follow.
And so they do for kernels, which no compiler can split.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from lightnet.scan.mesh import axis_types, lie
from lightnet.scan.recurrence import Axes, Tokens
from lightnet.typing import Array

# Letter of an axis -> axes of the mesh that it is split over, as far as the mesh has them. Groups of heads go with H,
# and no recurrence has the axis of a vocabulary.
MESH_AXES = {"B": ("data", "fsdp"), "L": ("sequence",), "D": ("tensor",), "H": ("tensor",), "vocabulary": ("tensor",)}


class Placement(NamedTuple):
    """How the arrays of one call lie on the mesh.

    Attributes:
        names: letter -> axes of the mesh that it is split over; empty where it is not.
        parts: letter -> into how many parts.
        lengths: letter -> size of the whole axis.
        manual: axes of the mesh that `jax.shard_map` takes.
        automatic: whether the mesh has others besides.
    """

    names: dict[str, tuple[str, ...]]
    parts: dict[str, int]
    lengths: dict[str, int]
    manual: frozenset[str]
    automatic: bool

    def __str__(self) -> str:
        """Each letter with the axes of the mesh that it is split over, and into how many parts."""
        split = [f"{x} over {', '.join(self.names[x])} ({n} parts)" for x, n in self.parts.items() if n > 1]
        return "; ".join(split) or "every device computes everything"


def placement(axes: Axes, operands: Any, *, everywhere: bool = False) -> Placement | None:
    """Where the arrays of a call go on the mesh that `jax.set_mesh` has set.

    Args:
        axes: letters of the recurrence.
        operands: what it is called with.
        everywhere: whether nothing is left to the compiler: along axes of the mesh that nothing is split over, all
            devices compute the same.

    Returns:
        The placement, or None where there are no devices to choose from.

    Example:
        >>> placement(Axes(("B L D",), "B D", "B L D"), (jnp.zeros((1, 2, 3)),)) is None
        True
    """
    mesh, kinds = jax.sharding.get_abstract_mesh(), axis_types()
    sizes = {name: mesh.shape[name] for name in kinds}
    lengths: dict[str, int] = {}
    for x, letters in pairs(axes.operands, operands):
        for letter, size in zip(letters, x.shape, strict=True):
            lengths[letter] = max(size, lengths.get(letter, 1))
    names = {letter: _divisors(letter, lengths[letter], sizes) for letter in MESH_AXES if letter in lengths}
    parts = {letter: math.prod(sizes[name] for name in split) for letter, split in names.items()}
    explicit = {name for name, kind in kinds.items() if kind == AxisType.Explicit}
    manual = set(kinds) if everywhere else explicit.union(*names.values())
    # Inside another `jax.shard_map` kernels need even the axes that have one device.
    taken = everywhere and 0 < len(kinds) < len(mesh.axis_names)
    if all(sizes[name] == 1 for name in manual) and not taken:
        return None
    return Placement(names, parts, lengths, frozenset(manual), manual != set(sizes))


def spread(x: Array, letters: str) -> Array:
    """The array laid over the automatic axes of the mesh as the table says, for the compiler to go on from.

    Without it the compiler may choose to compute the whole sequence on every device. Axes that do not divide stay
    whole, and so do those whose letter is not in the table.

    Args:
        x: such as activations (B, L, W).
        letters: of its axes.

    Returns:
        The array.

    Example:
        >>> spread(jnp.zeros((1, 2, 3)), "B L W").shape
        (1, 2, 3)
    """
    mesh, kinds = jax.sharding.get_abstract_mesh(), axis_types()
    sizes = {name: mesh.shape[name] for name, kind in kinds.items() if kind == AxisType.Auto}
    if all(size == 1 for size in sizes.values()):
        return x
    names = [
        _divisors(letter, size, sizes, whole=True) if letter in MESH_AXES else ()
        for letter, size in zip(letters.split(), x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(axes or None for axes in names)))


def enough_groups(letters: Any, operands: Any, placed: Placement) -> Any:
    """Groups of heads repeated so that each device has whole ones; a single group is everyone's."""
    if placed.lengths.get("G", 1) == 1 or placed.parts["H"] == 1:
        return operands
    times = math.lcm(placed.lengths["G"], placed.parts["H"]) // placed.lengths["G"]

    def repeat(x: Array, names: list[str]) -> Array:
        return jnp.repeat(lie(x, PartitionSpec()), times, names.index("G")) if "G" in names else x

    return with_letters(repeat, letters, operands)


def whole_parts(letters: Any, operands: Any, tokens: Tokens, placed: Placement) -> tuple[Any, Tokens]:
    """With masked tokens at the end, until the sequence is a multiple of the number of its parts."""
    length = placed.lengths["L"]
    extra = -length % placed.parts["L"]
    if not extra:
        return operands, tokens

    def pad(x: Array, names: list[str]) -> Array:
        if "L" not in names or x.shape[1] < length:
            return x
        widths = ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2)
        # What stands there has to be finite, and the number of a run must not decrease.
        mode = "edge" if jnp.issubdtype(x.dtype, jnp.integer) else "constant"
        return jnp.pad(lie(x, PartitionSpec()), widths, mode=mode)

    keep, real = tokens
    real = jnp.ones((placed.lengths["B"], length), bool) if real is None else real
    keep = None if keep is None else jnp.pad(keep, ((0, 0), (0, extra)), constant_values=True)
    return with_letters(pad, letters, operands), Tokens(keep, jnp.pad(real, ((0, 0), (0, extra))))


def of_one_device(letters: Any, operands: Any, placed: Placement | None) -> Any:
    """What one device gets of the operands, as shapes and dtypes; the operands themselves where nothing is placed."""
    if placed is None:
        return operands

    def whole(operands: Any) -> Any:
        return whole_parts(letters, enough_groups(letters, operands, placed), Tokens(None, None), placed)[0]

    def part(x: Any, names: list[str]) -> jax.ShapeDtypeStruct:
        counts = [placed.parts[letter] if axes else 1 for letter, axes in _split(x.shape, names, placed)]
        return jax.ShapeDtypeStruct([size // n for size, n in zip(x.shape, counts, strict=True)], x.dtype)

    return with_letters(part, letters, jax.eval_shape(whole, operands))


def spec(shape: tuple[int, ...], letters: list[str], placed: Placement) -> PartitionSpec:
    """An axis of size 1 that others have longer is everyone's."""
    return PartitionSpec(*(axes or None for _, axes in _split(shape, letters, placed)))


def with_letters(f: Callable, letters: Any, arrays: Any) -> Any:
    """f(array, its letters) for each array of a tree; None stays None."""
    return jax.tree.map(lambda x, names: None if x is None else f(x, names.split()), arrays, letters, is_leaf=_is_none)


def pairs(letters: Any, arrays: Any) -> list[tuple[Any, list[str]]]:
    """The arrays of a tree, each with its letters."""
    found: list[tuple[Any, list[str]]] = []
    with_letters(lambda x, names: found.append((x, names)), letters, arrays)
    return found


def _split(shape: tuple[int, ...], letters: list[str], placed: Placement) -> list[tuple[str, tuple[str, ...]]]:
    """For each axis the letter that it goes with, and the axes of the mesh that it is split over."""
    found = []
    for letter, size in zip(letters, shape, strict=True):
        letter = "H" if letter == "G" else letter
        found.append((letter, placed.names.get(letter, ()) if size > 1 else ()))
    return found


def _divisors(letter: str, length: int, sizes: dict[str, int], whole: bool = False) -> tuple[str, ...]:
    """The axes of the mesh for a letter, without the last ones while the length is not a multiple.

    A sequence need not be one, unless `whole`: it is padded.
    """
    names = tuple(name for name in MESH_AXES[letter] if name in sizes)
    if letter == "L" and not whole:
        return names if length >= math.prod(sizes[name] for name in names) else ()
    while length % math.prod(sizes[name] for name in names):
        names = names[:-1]
    return names


def _is_none(x: Any) -> bool:
    return x is None
