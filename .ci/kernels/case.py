"""One kernel to compile, and what its program moves, whatever it is compiled for."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

BATCH, LENGTH, HEADS, SIZE = 2, 2048, 8, 128
# Operations that move nothing, or only for rare operands.
STILL = ("parameter", "bitcast", "tuple", "get-tuple-element", "constant", "conditional", "while")


class Case(NamedTuple):
    """One kernel at one size.

    Attributes:
        call: of arrays.
        shapes: of these arrays.
        backward: whether what the backward pass adds is meant.
        trips: of the loops in a step of the grid, in the order of the program; of a kernel for TPUs.
        units: per step of the grid.
        unit: what bundles are counted for.
        over: the axes of a 2x2 mesh ("data", "tensor") that every array lies split over; None for one device.
        targets: to compile it for; empty for all.
    """

    call: Callable
    shapes: list[jax.ShapeDtypeStruct]
    backward: bool = False
    trips: tuple[int, ...] = ()
    units: float = 1
    unit: str = ""
    over: PartitionSpec | None = None
    targets: tuple[str, ...] = ()

    @property
    def output_bytes(self) -> int:
        """Of the call."""
        out = jax.eval_shape(self.call, *self.shapes)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(out))

    def both(self, *arguments: jax.Array) -> Any:
        """The forward and the backward pass."""
        out, pull = jax.vjp(self.call, *arguments)
        return pull(out)


class Measured(NamedTuple):
    """What a compiler says of one kernel.

    Attributes:
        numbers: that are held against the budget.
        wrong: what no budget could allow.
        seconds: that it took.
    """

    numbers: dict[str, float]
    wrong: list[str]
    seconds: float


def by_head(call: Callable) -> Callable:
    """With the heads side by side, as projections give and take them."""

    def flat(*arrays: jax.Array, **given: Any) -> jax.Array:
        return call(*(x.reshape(BATCH, LENGTH, HEADS, SIZE) for x in arrays), **given).reshape(BATCH, LENGTH, -1)

    return flat


def packed(case: Case, *names: str) -> Case:
    """With segments and a mask, or with those of both that are named."""
    names = names or ("segment_ids", "mask")

    def call(*arrays: jax.Array) -> Any:
        operands, flags = arrays[: len(case.shapes)], dict(zip(names, arrays[len(case.shapes) :], strict=True))
        if "mask" in flags:
            flags["mask"] = flags["mask"] != 0
        return case.call(*operands, **flags)

    flag = jax.ShapeDtypeStruct(case.shapes[0].shape[:2], jnp.int32)
    return case._replace(call=call, shapes=[*case.shapes, *[flag] * len(names)])


def traffic(program: str, case: Case, forward: int = 1) -> float:
    """Bytes that the program reads and writes, over the least that its inputs and outputs take.

    Of a backward pass, without its forward pass, whose output counts as one more input. What is fetched ahead of its
    use is counted where it is used.

    Args:
        program: as XLA prints it.
        case: what it is of.
        forward: how many of its kernels are the forward pass, in a backward one.

    Returns:
        The ratio.
    """
    sizes: dict[str, int] = {}
    moved = least = calls = 0
    for line in program[program.index("\nENTRY") :].splitlines()[1:]:
        found = re.match(r"\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)", line)
        if not found:
            continue
        name, shape, operation, operands = found.groups()
        if 'custom_call_target="ConcatBitcast"' in line:
            operation = "bitcast"  # of parts that were fetched ahead, one behind the other
        sizes[name] = sum(map(array_bytes, re.findall(r"(\w+)\[([\d,]*)\]", shape)))
        is_kernel = operation == "custom-call" and re.search(r'target="(tpu_custom_call|mosaic_gpu)', line) is not None
        calls += is_kernel
        if operation == "parameter" or "ROOT" in line:
            least += sizes[name]
        if case.backward and is_kernel and calls <= forward:
            least += case.output_bytes if calls == forward else 0
        elif operation not in STILL and not operation.endswith(("-start", "-done")):
            moved += sizes[name] + sum(sizes.get(x, 0) for x in re.findall(r"%([\w.-]+)", operands))
    return moved / least


def array_bytes(shape: tuple[str, str]) -> int:
    """Of a dtype and sizes as a program prints them."""
    kind, sizes = shape
    bits = re.search(r"\d+", kind)
    count = 1
    for size in filter(None, sizes.split(",")):
        count *= int(size)
    return count * (int(bits[0]) if bits else 8) // 8
