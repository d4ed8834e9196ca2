"""Compile every kernel for TPUs without any, and hold what the compiler says against the budgets.

Bundles are the instructions that a core issues together, one per cycle at best: counted in the loops of the program,
they are how long it takes if it never waits for memory. Run by `make kernels`, in an environment of its own.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
BUDGETS = ROOT / "lightnet" / "scan" / "budgets.json"
DUMP = Path(tempfile.mkdtemp(prefix="kernels-"))
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true",
)
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from lightnet import scan  # noqa: E402

TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
VMEM = 16 * 2**20  # what a program may use of it unless it asks for more
MOST_VMEM = 0.8
SLACK = 1.02  # of bundles: other releases of the compiler's parts order them a little differently
BATCH, LENGTH, HEADS, SIZE = 2, 2048, 8, 128
STILL = ("parameter", "bitcast", "tuple", "get-tuple-element", "constant")  # operations that move nothing


class Case(NamedTuple):
    """One kernel at one size.

    Attributes:
        call: of arrays.
        shapes: of these arrays.
        backward: whether the kernel of the backward pass is meant.
        trips: of the loops in a step of the grid, in the order of the program.
        units: per step of the grid.
        unit: what bundles are counted for.
    """

    call: Callable
    shapes: list[jax.ShapeDtypeStruct]
    backward: bool
    trips: tuple[int, ...]
    units: float
    unit: str

    @property
    def output_bytes(self) -> int:
        """Of the call."""
        out = jax.eval_shape(self.call, *self.shapes)
        return out.size * out.dtype.itemsize


class Measured(NamedTuple):
    """What the compiler says of one kernel on one target."""

    bundles: float
    spills: int
    vmem: int
    bytes: float
    seconds: float


def linear(dtype: Any, *, backward: bool = False) -> Case:
    """Tiles of 128 tokens and 2,048 numbers."""
    parts = 2 if dtype == jnp.complex64 else 1
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, 2048), dtype)
    call = lambda a, b: scan.linear_scan(a, b, implementation="pallas")[0]  # noqa: E731
    tokens = 128 // parts
    return Case(call, [x, x], backward, (tokens // 16,), tokens / 8, "8 rows of 2,048 channels")


def by_head(call: Callable) -> Callable:
    """With the heads side by side, as projections give and take them."""

    def flat(*arrays: jax.Array) -> jax.Array:
        return call(*(x.reshape(BATCH, LENGTH, HEADS, SIZE) for x in arrays)).reshape(BATCH, LENGTH, -1)

    return flat


def gated(dtype: Any, *, backward: bool = False) -> Case:
    """Blocks of 4 or 2 chunks; the backward pass first makes the states of all but one again."""
    x, decay = (jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * SIZE), d) for d in (dtype, jnp.float32))
    call = by_head(lambda *x: scan.gated_linear_attention(*x, implementation="pallas")[0])
    chunks, heads = (4 if dtype == jnp.bfloat16 else 2), (2 if backward else 4)
    trips = (3, 4) if backward and chunks > 2 else (chunks,)  # a loop that runs once is none
    return Case(call, [x, x, x, decay], backward, trips, 128 * chunks * heads, "token and head")


def causal(dtype: Any) -> Case:
    """Blocks of 4 or 2 chunks of 4 heads."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * SIZE), dtype)
    call = by_head(lambda *x: scan.additive_recurrence(*x, implementation="pallas")[0])
    chunks = 4 if dtype == jnp.bfloat16 else 2
    return Case(call, [x, x, x], False, (chunks,), 128 * chunks * 4, "token and head")


def order_free(dtype: Any, *, backward: bool = False) -> Case:
    """Blocks of 512 tokens of 4 heads, or 256, once for the keys and once for the queries."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * SIZE), dtype)
    call = by_head(lambda *x: scan.additive_global(*x, implementation="pallas"))
    return Case(call, [x, x, x], backward, (), (512 if dtype == jnp.bfloat16 else 256) * 4, "token and head")


CASES = {
    "linear_scan float32": linear(jnp.float32),
    "linear_scan float32 backward": linear(jnp.float32, backward=True),
    "linear_scan bfloat16": linear(jnp.bfloat16),
    "linear_scan complex64": linear(jnp.complex64),
    "gated_linear_attention bfloat16": gated(jnp.bfloat16),
    "gated_linear_attention bfloat16 backward": gated(jnp.bfloat16, backward=True),
    "gated_linear_attention float32": gated(jnp.float32),
    "additive_recurrence bfloat16": causal(jnp.bfloat16),
    "additive_recurrence float32": causal(jnp.float32),
    "additive_global bfloat16": order_free(jnp.bfloat16),
    "additive_global bfloat16 backward": order_free(jnp.bfloat16, backward=True),
    "additive_global float32": order_free(jnp.float32),
    "additive_global float32 backward": order_free(jnp.float32, backward=True),
}


def measure(case: Case, target: str) -> Measured:
    """Compile one kernel for one target."""
    for file in DUMP.iterdir():
        file.unlink()
    chip = SingleDeviceSharding(topologies.get_topology_desc(TARGETS[target], platform="tpu").devices[0])
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip) for x in case.shapes]

    def both(*args: jax.Array) -> Any:
        o, pull = jax.vjp(case.call, *args)
        return pull(o)

    start = time.monotonic()
    program = jax.jit(both if case.backward else case.call).trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
    seconds = time.monotonic() - start
    kernel = kernels()[-1]
    lines = kernel.read_text().splitlines()
    outside, loops = bundles(lines)
    if len(loops) != len(case.trips):
        raise AssertionError(f"{len(loops)} loops in a step of the grid, expected {len(case.trips)}")
    total = outside + sum(count * trips for count, trips in zip(loops, case.trips, strict=True))
    stored = [x for line in lines for x in re.findall(r"vst \[vmem:\[#(allocation\d+)_spill\]", line)]
    return Measured(
        total / case.units, len(stored), vmem(kernel, len({*stored})), traffic(program.as_text(), case), seconds
    )


def kernels() -> list[Path]:
    """The final programs of the kernels, in the order of the calls."""
    files = [x for x in DUMP.glob("*-final_bundles.txt") if "schedule-analysis" not in x.name]
    order = {x: re.search(r"-branch_0_fun\.(\d+)-", x.name) for x in files}
    return sorted((x for x, found in order.items() if found), key=lambda x: int(order[x][1]))  # type: ignore[index]


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
    text = next(DUMP.glob(f"{kernel.name.rsplit('-', 2)[0]}-*-pre-finalize-registers-and-allocations.txt")).read_text()
    return sum(int(size, 16) for size in re.findall(r"space=vmem, size = 0x([0-9a-f]+)", text)) + 4096 * slots


def traffic(program: str, case: Case) -> float:
    """Bytes that the program reads and writes, over the least that its inputs and outputs take.

    Of a backward pass, without its forward pass, whose output counts as one more input. What is fetched ahead of its
    use is counted where it is used.
    """
    sizes: dict[str, int] = {}
    moved = least = calls = 0
    for line in program[program.index("\nENTRY") :].splitlines()[1:]:
        found = re.match(r"\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)", line)
        if not found:
            continue
        name, shape, operation, operands = found.groups()
        sizes[name] = sum(map(array_bytes, re.findall(r"(\w+)\[([\d,]*)\]", shape)))
        calls += operation == "custom-call"
        if operation == "parameter" or "ROOT" in line:
            least += sizes[name]
        if case.backward and operation == "custom-call" and calls == 1:
            least += case.output_bytes
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


def verdict(measured: Measured, budget: dict[str, float] | None) -> str:
    """What is wrong, or nothing."""
    wrong = []
    if measured.vmem > MOST_VMEM * VMEM:
        wrong.append("too much VMEM")
    if budget is None:
        return ", ".join([*wrong, "no budget"])
    wrong += [
        f"{name}: {getattr(measured, name):g} instead of {budget[name]:g}"
        for name in ("bundles", "spills", "vmem", "bytes")
        if getattr(measured, name) > SLACK * budget[name]
    ]
    return ", ".join(wrong)


def main() -> int:
    """Print one table; the status is 1 if anything is above its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what is measured as the budgets of this compiler")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    options = parser.parse_args()
    compiler = f"libtpu {version('libtpu')}"
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    known, failed = budgets.get(compiler, {}), False
    print(f"{compiler}, jax {jax.__version__}; VMEM of {VMEM >> 20} MiB; bytes over the least possible")
    print(f"{'kernel':42} {'target':6} {'bundles':>8} {'spills':>7} {'VMEM':>5} {'bytes':>6} {'s':>5}  per")
    for name, case in CASES.items():
        if options.only not in name:
            continue
        for target in TARGETS:
            found = measure(case, target)
            wrong = "" if options.write else verdict(found, known.get(name, {}).get(target))
            failed |= bool(wrong)
            share = f"{found.vmem / VMEM:.0%}"
            print(
                f"{name:42} {target:6} {found.bundles:8.2f} {found.spills:7} {share:>5} {found.bytes:6.2f} "
                f"{found.seconds:5.1f}  {case.unit}{'   ' + wrong if wrong else ''}",
                flush=True,
            )
            row = {k: round(v, 3) for k, v in found._asdict().items() if k != "seconds"}
            budgets.setdefault(compiler, {}).setdefault(name, {})[target] = row
    if options.write:
        BUDGETS.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        shutil.rmtree(DUMP)
