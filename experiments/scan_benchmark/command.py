"""The benchmark from gate to report."""

from collections.abc import Sequence
from pathlib import Path

from experiments.scan_benchmark import report
from experiments.scan_benchmark.cases import cases
from experiments.scan_benchmark.functions import Function
from experiments.scan_benchmark.gate import GROUPS, check
from experiments.scan_benchmark.growth import SIZES, measure_growth
from experiments.scan_benchmark.machine import measured_rates
from experiments.scan_benchmark.measure import no_compilation_cache
from experiments.scan_benchmark.report import Report
from experiments.scan_benchmark.speed import measure_case


def benchmark(folder: Path, groups: Sequence[str], repeats: int, tiny: bool) -> int:
    """Check, then time, printing each table as soon as it is known.

    Args:
        folder: for `result.json` and the figure.
        groups: of functions.
        repeats: calls of each program.
        tiny: whether at sizes that show only that everything runs.

    Returns:
        0; 1 if the gate failed, and then nothing is timed.
    """
    found = Report({"only": list(groups), "repeats": repeats, "tiny": tiny})
    with no_compilation_cache():
        if not _gate([function for group in groups for function in GROUPS[group]], found):
            report.write(found, folder)
            return 1
        _speed(groups, repeats, tiny, found)
        _growth(groups, repeats, tiny, found)
    print(report.verdict_table(found.verdicts))
    print("\n" + "\n".join(str(path) for path in report.write(found, folder)))
    return 0


def _gate(chosen: Sequence[Function], found: Report) -> bool:
    found.checks = check(chosen)
    print(report.gate_table(found.checks), flush=True)
    passed = all(check.passed for check in found.checks)
    if not passed:
        print("the gate failed: nothing is timed", flush=True)
    return passed


def _speed(groups: Sequence[str], repeats: int, tiny: bool, found: Report) -> None:
    found.rates = measured_rates(repeats, large=1 << 10, side=16) if tiny else measured_rates(repeats)
    print("\n" + report.rates_line(found.rates), flush=True)
    for case in cases(tiny):
        if case.group in groups:
            rows, verdicts = measure_case(case, found.rates, repeats, tiny)
            found.rows += rows
            found.verdicts += verdicts
            print(report.case_table(rows, verdicts, repeats), flush=True)


def _growth(groups: Sequence[str], repeats: int, tiny: bool, found: Report) -> None:
    for group in SIZES:
        if group in groups:
            points, verdicts = measure_growth(group, repeats, tiny)
            found.points += points
            found.verdicts += verdicts
            print(report.growth_table(points), flush=True)
