"""Compile every kernel for TPUs and for Hopper GPUs without any, and hold what the compilers say against the budgets.

Run by `make kernels`, in an environment of its own.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
os.environ["JAX_PLATFORMS"] = "cpu"

from kernels import hopper, tpu  # noqa: E402
from kernels.case import Case, Measured  # noqa: E402

BUDGETS = ROOT / "lightnet" / "scan" / "budgets.json"
SLACK = 1.02  # other releases of the compilers' parts order instructions a little differently


def verdict(measured: Measured, budget: dict[str, float] | None) -> str:
    """What is wrong, or nothing."""
    if budget is None:
        return ", ".join([*measured.wrong, "no budget"])
    # More of anything is worse, but for the stages of a pipeline.
    worse = {n: x for n, x in measured.numbers.items() if (x < budget[n] if n == "stages" else x > SLACK * budget[n])}
    return ", ".join([*measured.wrong, *(f"{name}: {x:g} instead of {budget[name]:g}" for name, x in worse.items())])


def line(name: str, target: str, of: ModuleType, found: Measured, unit: str) -> str:
    """Of the table."""
    work, spills, memory, *stages, moved = (found.numbers[x] for x in of.COLUMNS)
    pipeline = f"{stages[0]:g}" if stages else ""
    return (
        f"{name:56} {target:6} {round(work, 2):9g} {spills:6g} {memory / of.MEMORY:6.0%} {pipeline:>6} {moved:6.2f} "
        f"{found.seconds:5.1f}  {unit}"
    )


def compile_all(of: ModuleType, cases: dict[str, Case], budget: dict, dump: Path) -> tuple[dict, list[str]]:
    """Compile the kernels for every target of a compiler, print a line for each.

    Args:
        of: the compiler.
        cases: by their names.
        budget: kernel -> target -> number -> at most.
        dump: a folder.

    Returns:
        The numbers as a budget, and what is wrong.
    """
    rows: dict = {}
    failures = []
    for case_name, case in cases.items():
        for target in case.targets or of.TARGETS:
            for kernel, found in of.measure(case, target, dump).items():
                name = f"{case_name}: {kernel}" if kernel else case_name
                wrong = verdict(found, budget.get(name, {}).get(target))
                print(f"{line(name, target, of, found, case.unit)}{'   ' if wrong else ''}{wrong}", flush=True)
                failures += [wrong] if wrong else []
                rows.setdefault(name, {})[target] = {k: round(v, 3) for k, v in found.numbers.items()}
    return rows, failures


def main() -> int:
    """Print one table; the status is 1 if anything is above its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what is measured as the budgets of the compilers")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--target", choices=("tpu", "hopper"), help="only for this one")
    options = parser.parse_args()
    compilers = [x for x in (tpu, hopper) if options.target in (None, x.__name__.rpartition(".")[2])]
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    failed = False
    dump = Path(tempfile.mkdtemp(prefix="kernels-"))
    for compiler in compilers:
        compiler.prepare(dump)
    print(" and ".join(x.compiler() for x in compilers))
    print("bundles, or registers of a thread; VMEM or SMEM; bytes over the least possible")
    print(f"{'kernel':56} {'target':6}   bundles spills memory stages  bytes     s  per")
    try:
        for compiler in compilers:
            every = importlib.import_module(f"{compiler.__name__}_cases").CASES
            cases = {name: case for name, case in every.items() if options.only in name}
            known = budgets.setdefault(compiler.compiler(), {})
            found, failures = compile_all(compiler, cases, known, dump)
            budgets[compiler.compiler()] = {**known, **found} if options.only else found
            failed |= bool(failures) and not options.write
    finally:
        shutil.rmtree(dump)
    if options.write:
        BUDGETS.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
