"""The text of a compiled program, read into lines, and how often each of them is carried out.

XLA's own analysis takes the body of a loop once. Here a body counts as often as the loop turns: as XLA says, or as the
loop's condition does, which compares a counter with a number.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"(?:to_apply|body|called_computation|calls)=%([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%([\w.-]+)")
_CONDITION = re.compile(r"condition=%([\w.-]+)")
_TURNS = re.compile(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)')
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_ELSEWHERE = re.compile(r"S\([1-9]")


class Array(NamedTuple):
    """An array in a shape.

    Attributes:
        bytes: without padding.
        in_memory: whether it lies in the chip's large memory, and not beside its cores.
    """

    bytes: float
    in_memory: bool


class Line(NamedTuple):
    """One operation.

    Attributes:
        name: what others call its result.
        shape: of the result, as written; a tuple has several arrays.
        operation: such as "fusion".
        operands: names of what it works on.
        rest: whatever is written after them.
        root: whether its result is that of the computation.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def called(self) -> list[str]:
        """Computations that it carries out."""
        return _CALLED.findall(self.rest)


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: lines of each, by name.
        entry: name of the whole.
    """

    computations: Mapping[str, list[Line]]
    entry: str

    @cached_property
    def fused(self) -> frozenset[str]:
        """Computations that are carried out as one operation."""
        lines = [line for each in self.computations.values() for line in each if line.operation == "fusion"]
        return frozenset(name for line in lines for name in line.called)

    def executed(self, *, fused: bool = False) -> Iterator[tuple[Line, str, float]]:
        """Every line, the computation that it stands in, and how often it is carried out.

        Args:
            fused: go into fused operations, too.
        """
        yield from self._executed(self.entry, 1.0, fused)

    def _executed(self, name: str, times: float, fused: bool) -> Iterator[tuple[Line, str, float]]:
        inside = {"while", "call", "async-start", "call-start", *(["fusion"] if fused else [])}
        for line in self.computations.get(name, ()):
            yield line, name, times
            if line.operation in inside:
                turns = self._turns(line) if line.operation == "while" else 1
                for inner in line.called:
                    yield from self._executed(inner, times * turns, fused)
            for several, single in _BRANCHES.findall(line.rest):
                # Of an update that is not finite no branch does anything: all that there is to do counts.
                for inner in _NAME.findall(several) or [single]:
                    yield from self._executed(inner, times, fused)

    def _turns(self, loop: Line) -> int:
        if known := _TURNS.search(loop.rest):
            return int(known[1])
        condition = _CONDITION.search(loop.rest)
        lines = self.computations.get(condition[1], ()) if condition else ()
        ends = [int(line.rest.partition(")")[0]) for line in lines if line.operation == "constant" and _counts(line)]
        return max(ends, default=1)


def _counts(line: Line) -> bool:
    return line.shape.startswith("s32[]")


def parse(text: str) -> Program:
    """Read a program.

    Args:
        text: of `jax.stages.Compiled.as_text`.

    Returns:
        Its lines.
    """
    computations: dict[str, list[Line]] = {}
    entry = name = ""
    for written in text.splitlines():
        if header := _HEADER.match(written):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif name and (match := _LINE.match(written)):
            root, own, shape, operation, rest = match.groups()
            operands = tuple(_NAME.findall(rest.partition("), ")[0]))
            computations[name].append(Line(own, shape, operation, operands, rest, bool(root)))
    return Program(computations, entry)


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape.

    Args:
        shape: as written.

    Returns:
        One, or those of a tuple.

    Example:
        >>> arrays("(f32[4,2]{1,0:T(8,128)}, bf16[3]{0:S(1)}, pred[])")
        [Array(bytes=32.0, in_memory=True), Array(bytes=6.0, in_memory=False), Array(bytes=1.0, in_memory=True)]
    """
    return [_array(*found) for found in _ARRAY.findall(shape)]


def _array(kind: str, sizes: str, layout: str) -> Array:
    bits = re.search(r"\d+", kind)  # f32, bf16, s4, f8e4m3fn; pred is a byte
    size = math.prod(int(size) for size in filter(None, sizes.split(",")))
    return Array(size * (int(bits[0]) if bits else 8) / 8, not _ELSEWHERE.search(layout))
