"""The budgets of the kernels: complete for every compiler that is pinned, and within what is promised."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUDGETS = json.loads((ROOT / "lightnet" / "scan" / "budgets.json").read_text())
TPUS, HOPPER = ({k: v for k, v in BUDGETS.items() if k.startswith(x)} for x in ("libtpu", "jax-cuda13-plugin"))
TARGETS = {"v5e", "v5p", "v6e"}
FUNCTIONS = ("linear_scan", "diagonal_ssm", "selective_scan", "gated_", "additive_recurrence", "additive_global")
VMEM = 16 * 2**20
SMEM = 232448
OF_MEMORY = 4 * 128 * 2 / (819e9 / 1.5e9)  # cycles of v5e in which four bfloat16 arrays of a head of 128 pass
PTXAS = """ptxas info    : Compiling entry function 'scan_mosaic_gpu_kernel' for 'sm_90a'
ptxas         .     0 bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads
ptxas info    : Used 72 registers, used 2 barriers, 17 bytes smem
"""


@pytest.fixture
def compiling(monkeypatch):
    """The modules of `make kernels`, which sets variables of a process of its own."""
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return importlib.import_module


def pinned(package):
    files = (ROOT / "constraints.txt", ROOT / ".ci" / "kernels" / "constraints.txt")
    return {found for file in files for found in re.findall(rf"^{package}==(\S+)", file.read_text(), re.MULTILINE)}


def test_every_pinned_compiler_has_a_budget_for_every_kernel():
    assert set(TPUS) == {f"libtpu {version}" for version in pinned("libtpu")}
    (ptxas,) = pinned("nvidia-cuda-nvcc")
    assert set(HOPPER) == {f"jax-cuda13-plugin {version} ptxas {ptxas}" for version in pinned("jax-cuda13-plugin")}
    for compilers in (TPUS, HOPPER):
        assert len({frozenset(kernels) for kernels in compilers.values()}) <= 1
    for name, kernel in ((name, rows) for kernels in TPUS.values() for name, rows in kernels.items()):
        assert set(kernel) in (TARGETS, {"v5e"}, {"v5p"}), name
        for row in kernel.values():
            assert set(row) == {"bundles", "spills", "vmem", "bytes"}
    for kernel in (rows for kernels in HOPPER.values() for rows in kernels.values()):
        assert set(kernel) == {"sm_90a"}
        assert set(kernel["sm_90a"]) == {"registers", "spills", "smem", "stages", "bytes"}


def test_every_function_has_a_kernel_for_every_tpu_in_both_directions():
    for kernels in TPUS.values():
        everywhere = {name for name, rows in kernels.items() if set(rows) == TARGETS}
        for function in (
            "linear_scan",
            "diagonal_ssm",
            "selective_scan",
            "gated_linear_attention",
            "additive_recurrence",
            "additive_global",
        ):
            ways = {name.endswith("backward") for name in everywhere if name.startswith(function)}
            assert ways == {False, True}, function


def test_budgets_are_within_what_is_promised():
    for kernels in TPUS.values():
        for rows in kernels.values():
            assert all(row["vmem"] <= 0.8 * VMEM for row in rows.values())
        assert all(row["bundles"] <= 4 for row in kernels["gated_linear_attention bfloat16"].values())
        assert all(row["bundles"] <= 73 for row in kernels["linear_scan float32"].values())
        assert kernels["additive_global bfloat16"]["v5e"]["bundles"] <= 1.3 * OF_MEMORY
    for name, row in ((name, rows["sm_90a"]) for kernels in HOPPER.values() for name, rows in kernels.items()):
        assert row["smem"] <= SMEM
        assert row["stages"] >= 2
        assert row["spills"] == 0 or "backward" in name


def test_a_program_is_counted_loop_by_loop(compiling):
    program = ["  0 : { a }", " 0x1 LB: > { a }", " 0x2   : > { b }", " 0x3 LB: >> { c }", " 0x4   : >> { d }"]
    program += [" 0x5   : > {}", " 0x6 LB: >> { e }", " 0x7 LB: >>> { f }", "LB: loop body", " 0x8   :  { g }"]
    assert compiling("kernels.tpu").bundles(program) == (3, [2, 1])


def test_a_kernel_that_spills_or_waits_is_named(compiling, tmp_path):
    report, program, passes = (tmp_path / f"scan_0.{x}" for x in ("ptxas", "ptx", "mlir-passes.log"))
    program.write_text("@%p1 mbarrier.init.shared.b64 [%r3], %r4;\n" * 2)
    passes.write_text("gpu.launch async dynamic_shared_memory_size %c2048_i32 {\n")
    report.write_text(PTXAS.format(spills=0))
    kernel = compiling("kernels.hopper").kernel
    found = kernel(program, 1.0, 0.0, spilling=False)
    assert found.numbers == {"registers": 72, "spills": 0, "smem": 2048, "stages": 2, "bytes": 1.0}
    assert found.wrong == []
    report.write_text(
        PTXAS.format(spills=8) + "Potential Performance Loss: wgmma.mma_async instructions are serialized"
    )
    program.write_text("@%p1 mbarrier.init.shared.b64 [%r3], %r4;\n@%p2 mbarrier.init.shared.b64 [%r3], %r5;\n")
    passes.write_text(f"gpu.launch async dynamic_shared_memory_size %c{SMEM + 1}_i32 {{\n")
    wrong = kernel(program, 1.0, 0.0, spilling=False).wrong
    assert wrong == ["registers are spilled", "too much SMEM", "no pipeline", "wgmma one after the other"]
    assert "registers are spilled" not in kernel(program, 1.0, 0.0, spilling=True).wrong


def test_bytes_are_counted_without_the_forward_pass(compiling):
    case = compiling("kernels.case")
    program = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = (f32[4]{0}, s32[]) custom-call(%x), custom_call_target="mosaic_gpu_v2"
  %z = f32[4]{0} get-tuple-element(%y), index=0
  %w = f32[4]{0} custom-call(%z, %x), custom_call_target="mosaic_gpu_v2"
  ROOT %out = f32[4]{0} fusion(%w), kind=kLoop
}"""
    x = compiling("jax").ShapeDtypeStruct((4,), "float32")
    forward = case.Case(lambda x: x, [x])
    assert case.traffic(program, forward) == (36 + 48 + 32) / 32
    assert case.traffic(program, forward._replace(backward=True)) == (48 + 32) / 48


def test_what_is_worse_than_its_budget_is_named(compiling):
    verdict, measured = compiling("compile_kernels").verdict, compiling("kernels.case").Measured
    budget = {"bundles": 4.0, "spills": 10, "stages": 3}
    assert verdict(measured(budget, [], 0.0), budget) == ""
    assert verdict(measured(budget, [], 0.0), None) == "no budget"
    assert verdict(measured({**budget, "bundles": 4.2}, [], 0.0), budget) == "bundles: 4.2 instead of 4"
    assert verdict(measured({**budget, "stages": 2}, [], 0.0), budget) == "stages: 2 instead of 3"
    assert verdict(measured({**budget, "stages": 4}, ["too much VMEM"], 0.0), budget) == "too much VMEM"


def test_what_is_joined_in_place_is_not_moved(compiling):
    program = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = f32[4]{0} custom-call(%x), custom_call_target="ConcatBitcast"
  ROOT %z = f32[4]{0} custom-call(%y), custom_call_target="tpu_custom_call"
}
"""
    case = compiling("kernels.case")
    of = case.Case(lambda x: x, [compiling("jax").ShapeDtypeStruct((4,), "float32")])
    assert case.traffic(program, of) == 1
    assert case.traffic(program.replace("ConcatBitcast", "X64SplitLow"), of) == 2
