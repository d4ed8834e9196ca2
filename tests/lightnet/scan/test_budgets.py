"""The budgets of the kernels for TPUs: complete for every compiler that is pinned, and within what is promised."""

import importlib.util
import json
import re
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUDGETS = json.loads((ROOT / "lightnet" / "scan" / "budgets.json").read_text())
TARGETS = {"v5e", "v5p", "v6e"}
VMEM = 16 * 2**20


@pytest.fixture(scope="module")
def compiling(tmp_path_factory):
    """The script of `make kernels`; it sets variables of a process of its own."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location("compile_kernels", ROOT / ".ci" / "compile_kernels.py")
        module = importlib.util.module_from_spec(spec)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("kernels")))
        for name in ("TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "LIBTPU_INIT_ARGS"):
            patch.setenv(name, "")
        spec.loader.exec_module(module)
        yield module


def test_every_pinned_compiler_has_a_budget_for_every_kernel():
    pinned = re.findall(r"^libtpu==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert set(BUDGETS) == {f"libtpu {version}" for version in pinned}
    kernels = [set(kernels) for kernels in BUDGETS.values()]
    assert all(names == kernels[0] for names in kernels)
    for kernel in (rows for kernels in BUDGETS.values() for rows in kernels.values()):
        assert set(kernel) == TARGETS
        for row in kernel.values():
            assert set(row) == {"bundles", "spills", "vmem", "bytes"}


def test_budgets_are_within_what_is_promised():
    for kernels in BUDGETS.values():
        for rows in kernels.values():
            assert all(row["vmem"] <= 0.8 * VMEM for row in rows.values())
        assert all(row["bundles"] <= 4 for row in kernels["gated_linear_attention bfloat16"].values())


def test_a_program_is_counted_loop_by_loop(compiling):
    program = ["  0 : { a }", " 0x1 LB: > { a }", " 0x2   : > { b }", " 0x3 LB: >> { c }", " 0x4   : >> { d }"]
    program += [" 0x5   : > {}", " 0x6 LB: >> { e }", " 0x7 LB: >>> { f }", "LB: loop body", " 0x8   :  { g }"]
    assert compiling.bundles(program) == (3, [2, 1])


def test_what_is_above_its_budget_is_named(compiling):
    budget = {"bundles": 4.0, "spills": 10, "vmem": 100, "bytes": 1.0}
    measured = compiling.Measured(4.0, 10, 100, 1.0, 0.0)
    assert compiling.verdict(measured, budget) == ""
    assert compiling.verdict(measured, None) == "no budget"
    assert compiling.verdict(measured._replace(bundles=4.2), budget) == "bundles: 4.2 instead of 4"
    assert "too much VMEM" in compiling.verdict(measured._replace(vmem=VMEM), budget)
