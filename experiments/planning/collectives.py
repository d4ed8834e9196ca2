"""What the chips of a compiled program send each other.

Bytes that each chip sends follow from the arrays as for rings, which send the least: with n chips in a group,
(n - 1) / n of what is gathered, scattered or exchanged, twice that for a sum that all have, all of what is permuted.
Where a group spans several slices, the chips of each do their part first, and only what is left goes outside.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.planning.hlo import Line, Program, arrays

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


class Collective(NamedTuple):
    """One kind, over all its calls in a program.

    Attributes:
        kind: as XLA calls it.
        group: chips that take part together.
        slices: that these are on.
        calls: how often.
        bytes: that each chip sends within its slice.
        outside: bytes that each chip sends to other slices.
    """

    kind: str
    group: int
    slices: int
    calls: float
    bytes: float
    outside: float


def collectives(program: Program, slices: Sequence[int]) -> list[Collective]:
    """Count a program.

    Args:
        program: a compiled one.
        slices: of each device, in the order of the mesh, the slice that it is on.

    Returns:
        A row for each kind and size of group, the most bytes first.
    """
    found: dict[tuple[str, int, int], np.ndarray] = defaultdict(lambda: np.zeros(3))
    for line, place, times in _calls(program):
        kind = line.operation.removesuffix("-start")
        if kind == "send":
            key, outside = _to_other_slices(line, len(set(slices)))
            found[key] += times * np.array([1.0, 0.0, outside])
            continue
        members = _pair(line.rest) if kind == "collective-permute" else _group(line.rest, len(slices))
        size = _size(line, kind)
        if kind == "all-reduce" and place in program.fused and _keeps_a_part(program.computations[place], line):
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            size *= len(members)
        spanned = len({slices[member] for member in members})
        sent = _sent(kind, size, len(members) // spanned, spanned)
        found[kind, len(members), spanned] += times * np.array([1.0, *sent])
    rows = [Collective(*key, *map(float, sums)) for key, sums in found.items()]
    return sorted(rows, key=lambda row: -row.bytes - row.outside)


def _calls(program: Program) -> Iterator[tuple[Line, str, float]]:
    """Collectives; one of which fused operations each do a part, beside other work, counts once."""
    done = set()
    for line, place, times in program.executed(fused=True):
        if line.operation.removesuffix("-start") not in (*KINDS, "send"):
            continue
        channel = re.search(r"channel_id=(\d+)", line.rest)
        if channel and place in program.fused:
            if channel[1] in done:
                continue
            done.add(channel[1])
        yield line, place, times


def _to_other_slices(line: Line, slices: int) -> tuple[tuple[str, int, int], float]:
    """What a chip hands to its host for a collective between slices: kind and sizes of the group, and bytes."""
    told = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)
    kind = told[1].lower().replace("_", "-") if told else "collective-permute"
    kind = kind if kind in KINDS else "collective-permute"
    size = arrays(line.shape)[0].bytes * (slices if kind == "all-gather" else 1)
    return (kind, slices, slices), _sent(kind, size, 1, slices)[1]


def _sent(kind: str, size: float, inside: int, slices: int) -> tuple[float, float]:
    """Bytes that a chip sends within its slice, and outside, of the whole array that its group works on."""
    if kind == "collective-permute":
        return (size, 0.0) if slices == 1 else (0.0, size)
    within, across = ((n - 1) / n for n in (inside, slices))
    if kind == "all-to-all":
        return within * size / slices, across * size
    twice = 2 if kind == "all-reduce" else 1
    return twice * within * size, twice * across * size / inside


def _group(rest: str, devices: int) -> list[int]:
    """The first group: of `{{0,1},{2,3}}`, of `[2,4]<=[8]`, two groups of four, of a mesh's axes, or of all."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return _numbers(listed[1])
    if shaped := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+)", rest):
        return _in_order(shaped[3]).reshape(int(shaped[1]), int(shaped[2]))[0].tolist()
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? ?\{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([\w.]+)'=(\d+)", meshed[1])}
        taken = re.findall(r"'([\w.]+)'", meshed[3])
        ids = _in_order(meshed[2] or f"[{math.prod(sizes.values())}]").reshape(list(sizes.values()))
        return ids[tuple(slice(None) if axis in taken else 0 for axis in sizes)].ravel().tolist()
    if re.search(r"replica_groups=(?!\{\})", rest):
        raise ValueError(f"the groups of a collective are written as was not known: {rest[:300]}")
    return list(range(devices))


def _in_order(written: str) -> np.ndarray:
    """Devices in the order of `[2,4]T(1,0)`: numbered in an array of that shape, and read with its axes exchanged."""
    shape, axes = re.findall(r"[\[(]([\d,]+)[\])]", f"{written}(0)")[:2]
    order = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return order.transpose(_numbers(axes)) if "T(" in written else order


def _pair(rest: str) -> list[int]:
    """Two chips, one of which sends to the other."""
    pairs = [_numbers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", rest.partition("source_target_pairs=")[2])]
    return next((pair for pair in pairs if pair[0] != pair[1]), [0, 0])


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _size(line: Line, kind: str) -> float:
    """Bytes of the result; that of an operation which is only started holds its inputs before its results."""
    sizes = [array.bytes for array in arrays(line.shape)]
    if line.operation == kind or kind not in ("all-gather", "collective-permute"):
        return sum(sizes)
    # Of several arrays that are gathered together there are as many inputs as results.
    return sum(sizes[len(sizes) // 2 :]) if kind == "all-gather" else max(sizes, default=0.0)


def _keeps_a_part(lines: list[Line], reduced: Line) -> bool:
    """The compiler for TPUs writes a reduce-scatter as a fused sum over all, of which each chip cuts its part."""
    users = _users(lines, reduced)
    taken = [_users(lines, user) if user.operation == "get-tuple-element" else [user] for user in users]
    parts = [user.operation for each in taken for user in each]
    return bool(parts) and set(parts) == {"dynamic-slice"}


def _users(lines: list[Line], used: Line) -> list[Line]:
    return [line for line in lines if used.name in line.operands]
