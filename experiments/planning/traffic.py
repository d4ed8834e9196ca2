"""Bytes that a chip reads from its memory and writes to it in a compiled program.

They are those of the inputs and outputs of each fused operation. Of an array of which only a part is looked up, cut out
or replaced, that part counts, as in a loop over the layers of a stack; what lies beside the cores counts nothing.
"""

from collections.abc import Mapping
from functools import cache

from experiments.planning.hlo import Line, Program, arrays

# Operations that move nothing, or whose parts are counted by themselves.
_STILL = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant", "while", "conditional", "call", "iota"}
_STILL |= {"async-start", "async-update", "async-done", "call-start", "call-done", "after-all", "partition-id"}
_STILL |= {"send", "send-done", "recv", "recv-done"}  # to other slices, counted as collectives
_CUT = ("dynamic-slice", "slice", "gather")


def memory_traffic(program: Program) -> float:
    """Count a program.

    Args:
        program: a compiled one.

    Returns:
        Bytes, read and written.
    """
    sizes = {
        name: {line.name: _in_memory(line.shape) for line in lines} for name, lines in program.computations.items()
    }

    @cache
    def reads(name: str) -> list[float]:
        """Of a fused computation, bytes of each of its parameters."""
        return _reads(program.computations[name], reads)

    total = 0.0
    for line, place, times in program.executed():
        if line.operation in _STILL:
            continue
        given = [sizes[place].get(operand, 0.0) for operand in line.operands]
        total += times * (_read(line, given, reads) + _written(line, given, program))
    return total


def _in_memory(shape: str) -> float:
    return sum(array.bytes for array in arrays(shape) if array.in_memory)


def _whole(shape: str) -> float:
    return sum(array.bytes for array in arrays(shape))


def _read(line: Line, given: list[float], reads) -> float:
    """Bytes of what a line works on."""
    if line.operation.endswith("-done"):
        return 0.0
    if line.operation in _CUT:
        return min(given[0], _whole(line.shape)) + sum(given[1:])
    if line.operation == "dynamic-update-slice":
        return sum(given[1:])
    if line.operation == "fusion":
        return sum(map(min, given, reads(line.called[0])))
    return sum(given)


def _written(line: Line, given: list[float], program: Program) -> float:
    """Bytes of what comes out."""
    if line.operation.endswith("-start"):
        return 0.0
    whole = _in_memory(line.shape)
    if line.operation == "dynamic-update-slice":
        return min(whole, given[1])
    if line.operation == "fusion":
        return min(whole, _replaced(program.computations[line.called[0]]))
    return whole


def _reads(lines: list[Line], reads) -> list[float]:
    """Bytes that a fused computation reads of each of its parameters, in their order."""
    parameters = {int(line.rest.partition(")")[0]): line for line in lines if line.operation == "parameter"}
    return [_of_parameter(parameters[number], lines, reads) for number in sorted(parameters)]


def _of_parameter(array: Line, lines: list[Line], reads) -> float:
    """A part if every use of it takes a part."""
    total = 0.0
    for user in lines:
        for place, operand in enumerate(user.operands):
            if operand != array.name:
                continue
            if user.operation == "bitcast":
                total += _of_parameter(user, lines, reads)
            elif user.operation in _CUT and place == 0:
                total += _whole(user.shape)
            elif user.operation == "fusion":
                total += reads(user.called[0])[place]
            elif user.operation != "dynamic-update-slice" or place != 0:
                return _whole(array.shape)
    return min(total, _whole(array.shape))


def _replaced(lines: list[Line]) -> float:
    """Bytes that a fused computation writes: of an array in which a part is replaced, that part."""
    named: Mapping[str, Line] = {line.name: line for line in lines}
    root = next(line for line in lines if line.root)
    total = 0.0
    for name in root.operands if root.operation == "tuple" else (root.name,):
        line = named[name]
        while line.operation == "bitcast":
            line = named[line.operands[0]]
        replaced = line.operation == "dynamic-update-slice"
        total += _whole(named[line.operands[1]].shape if replaced else line.shape)
    return total
