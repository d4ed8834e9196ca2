"""Compile a kernel for Hopper GPUs without any, down to machine code, from what the plans know of an H100."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from kernels.case import Case, Measured, traffic

TARGETS = {"sm_90a": (Path(__file__).parents[2] / "experiments" / "planning" / "h100.pbtxt").read_text()}
COLUMNS = ("registers", "spills", "smem", "stages", "bytes")
MEMORY = 232448  # bytes of shared memory that a block may have
KNOWN: set[str] = set()  # kernels that were compiled: another program has them from a cache, or again
STAGES = 2  # of a pipeline, so that memory is read while something is computed


def prepare(dump: Path) -> None:
    """Before the first program is compiled.

    Args:
        dump: an empty folder for what the compiler says.
    """
    os.environ.update(JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1", MOSAIC_GPU_DUMP_TO=str(dump))
    os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"  # it would time programs


def compiler() -> str:
    """Which one, with its versions."""
    return f"jax-cuda13-plugin {version('jax-cuda13-plugin')} ptxas {version('nvidia-cuda-nvcc')}"


def measure(case: Case, target: str, dump: Path) -> dict[str, Measured]:
    """Compile the kernels of one program, by their names; of a backward pass those that its forward pass has not."""
    chip = topologies.get_topology_desc("", "cuda", target_config=TARGETS[target], topology="1x1x1").devices[0]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(chip)) for x in case.shapes]

    def compiled(function: Callable) -> str:
        for file in dump.iterdir():
            file.unlink()
        lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))
        with without_errors():
            return lowered.compile().as_text()

    start = time.monotonic()
    program = compiled(case.call)
    forward = program.count('custom_call_target="mosaic_gpu')
    if case.backward:
        program = compiled(case.both)
    seconds = time.monotonic() - start
    ratio = traffic(program, case, forward)
    files = sorted(dump.glob("*.ptx"), key=lambda x: (int(x.stem.rpartition("_")[2]), x.stem))
    new = {instructions(file): file for file in files}
    new = {text: file for text, file in new.items() if text not in KNOWN}
    KNOWN.update(new)
    if not new:
        raise AssertionError("the program has no kernel that no other has")
    names = [x.stem.rpartition("_")[0] for x in new.values()]
    if len(names) > 1:
        names = [name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names, 1)]
    else:
        names = [""]
    return {
        name: kernel(file, ratio, seconds, spilling=case.backward)
        for name, file in zip(names, new.values(), strict=True)
    }


def instructions(ptx: Path) -> str:
    """Of a program, without the places in our files that they come from."""
    return "\n".join(re.findall(r"^\t((?:@\S+ +)?[a-z][^\n]*;)", ptx.read_text(), re.MULTILINE))


@contextmanager
def without_errors() -> Iterator[None]:
    """What the compiler prints is that it finds no `nvdisasm`, for which nothing here has a use."""
    shown = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)


def kernel(ptx: Path, ratio: float, seconds: float, *, spilling: bool) -> Measured:
    """What the compiler says of one.

    Args:
        ptx: its program, beside which the reports lie.
        ratio: of bytes, in the whole program.
        seconds: that the program took.
        spilling: whether it may spill registers.
    """
    program, report = ptx.read_text(), ptx.with_suffix(".ptxas").read_text()
    launch = re.search(r"dynamic_shared_memory_size %c(\d+)_i32", ptx.with_suffix(".mlir-passes.log").read_text())
    numbers = {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),  # type: ignore[index]
        "spills": int(re.search(r"(\d+) bytes spill stores", report)[1]),  # type: ignore[index]
        "smem": int(launch[1]) if launch else 0,
        # Barriers that wait for equally many copies.
        "stages": max(Counter(re.findall(r"mbarrier\.init\S* \[.*\], (\S+);", program)).values(), default=0),
        "bytes": ratio,
    }
    wrong = {
        "registers are spilled": numbers["spills"] > 0 and not spilling,
        "too much SMEM": numbers["smem"] > MEMORY,
        "no pipeline": numbers["stages"] < STAGES,
        "wgmma one after the other": "wgmma" in report,  # a warning: nothing is computed while they run
    }
    return Measured(numbers, [name for name, is_so in wrong.items() if is_so], seconds)
