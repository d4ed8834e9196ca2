"""Compile a kernel for TPUs without any.

Bundles are the instructions that a core issues together, one per cycle at best: counted in the loops of the program,
they are how long it takes if it never waits for memory.
"""

import os
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, SingleDeviceSharding

from kernels.case import Case, Measured, traffic

TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
COLUMNS = ("bundles", "spills", "vmem", "bytes")
MEMORY = 16 * 2**20  # of VMEM, what a program may use unless it asks for more
MOST = 0.8


def prepare(dump: Path) -> None:
    """Before the first program is compiled.

    Args:
        dump: an empty folder for what the compiler says.
    """
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
    )


def compiler() -> str:
    """Which one, with its version."""
    return f"libtpu {version('libtpu')}"


def measure(case: Case, target: str, dump: Path) -> dict[str, Measured]:
    """Compile one kernel for one target; the last of the program is meant."""
    for file in dump.iterdir():
        file.unlink()
    start = time.monotonic()
    program = compiled(case, topologies.get_topology_desc(TARGETS[target], platform="tpu"))
    seconds = time.monotonic() - start
    kernel = kernels(dump)[-1]
    lines = kernel.read_text().splitlines()
    outside, loops = bundles(lines)
    if len(loops) != len(case.trips):
        raise AssertionError(f"{len(loops)} loops in a step of the grid, expected {len(case.trips)}")
    total = outside + sum(count * trips for count, trips in zip(loops, case.trips, strict=True))
    stored = [x for line in lines for x in re.findall(r"vst \[vmem:\[#(allocation\d+)_spill\]", line)]
    memory = vmem(kernel, len({*stored}))
    numbers = {"bundles": total / case.units, "spills": len(stored), "vmem": memory, "bytes": traffic(program, case)}
    return {"": Measured(numbers, ["too much VMEM"] if memory > MOST * MEMORY else [], seconds)}


def compiled(case: Case, chips: Any) -> str:
    """The program for one chip of a slice, or for all four."""
    function = jax.jit(case.both if case.backward else case.call)
    if case.over is None:
        one = SingleDeviceSharding(chips.devices[0])
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one) for x in case.shapes]
        return function.trace(*shapes).lower(lowering_platforms=("tpu",)).compile().as_text()
    mesh = topologies.make_mesh(chips, (2, 2), ("data", "tensor"))
    split = NamedSharding(mesh, case.over)
    with jax.set_mesh(mesh):
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for x in case.shapes]
        return function.trace(*shapes).lower(lowering_platforms=("tpu",)).compile().as_text()


def kernels(dump: Path) -> list[Path]:
    """The final programs of the kernels, in the order of the calls."""
    files = [x for x in dump.glob("*-final_bundles.txt") if "schedule-analysis" not in x.name]
    pattern = r"-(?:branch_0_fun|kernel|shard_map|\w+_forward|\w+_(backward))\.(\d+)-"
    order = {x: re.search(pattern, x.name) for x in files}
    return sorted((x for x, found in order.items() if found), key=lambda x: (order[x][1] or "", int(order[x][2])))  # type: ignore[index]


def bundles(lines: list[str]) -> tuple[int, list[int]]:
    """In a step of the grid outside of its loops, and in each of these; loops within them are rarely taken."""
    outside, loops = 0, []
    for line in lines:
        found = re.match(r"\s*(?:0x)?[0-9a-f]+\s+([A-Z]{2})?\s*:\s*([> ]*)\{", line)
        depth = found[2].count(">") if found else 0
        if found and depth == 2 and found[1] == "LB":
            loops.append(0)
        if depth == 2:
            loops[-1] += 1
        outside += depth == 1
    return outside, loops


def vmem(kernel: Path, slots: int) -> int:
    """Bytes of it that the program has, with the slots that vectors are spilled to."""
    name = f"{kernel.name.rsplit('-', 2)[0]}-*-pre-finalize-registers-and-allocations.txt"
    text = next(kernel.parent.glob(name)).read_text()
    return sum(int(size, 16) for size in re.findall(r"space=vmem, size = 0x([0-9a-f]+)", text)) + 4096 * slots
