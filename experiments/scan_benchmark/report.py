"""What was measured, as text, JSON and a figure."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments import environment
from experiments.files import atomic_write_bytes, make_folder, write_json
from experiments.plain_text import text_table
from experiments.scan_benchmark.gate import Check
from experiments.scan_benchmark.growth import Point
from experiments.scan_benchmark.machine import Rates
from experiments.scan_benchmark.measure import FORWARD
from experiments.scan_benchmark.speed import DIFFERENT, FASTER, Row, Verdict


@dataclass
class Report:
    """Everything, in the order in which it was found.

    Attributes:
        settings: what the command was told.
        rates: of this machine.
        checks: of the gate.
        rows: programs and their times.
        points: time per token.
        verdicts: what is asked and what was found.
    """

    settings: dict[str, Any]
    rates: Rates | None = None
    checks: list[Check] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


def gate_table(checks: Sequence[Check]) -> str:
    """The worst error of each function, precision and kind over the regimes.

    Args:
        checks: of the gate.

    Returns:
        The table, and a line for each check that failed.
    """
    worst: dict[tuple[str, str, str], Check] = {}
    for check in checks:
        key = (check.function, check.dtype, check.kind)
        if key not in worst or not check.error <= worst[key].error:
            worst[key] = check
    rows = [[c.function, c.dtype, c.kind, c.regime, f"{c.error:.1e}", f"{c.bound:.0e}"] for c in worst.values()]
    table = text_table(["function", "operands", "of", "worst regime", "error", "below"], rows)
    failed = [f"FAILED: {c.function}, {c.regime}, {c.dtype}: {c.kind} {c.error:.2e}" for c in checks if not c.passed]
    return "\n".join([table, *failed])


def case_table(rows: Sequence[Row], verdicts: Sequence[Verdict], repeats: int) -> str:
    """One case.

    Args:
        rows: its programs.
        verdicts: what is asked of it.
        repeats: calls that each time should be the median of; where it is of fewer, that is told.

    Returns:
        A title and a table for each phase.
    """
    asked = {(v.phase, v.peer): v for v in verdicts if v.quantity == FASTER}
    header = ["program", "CPU ms", "wall ms", "temp. MB", "compile s", "error", "ratio", "asked", "verdict"]
    tables = []
    for phase in dict.fromkeys(row.phase for row in rows):
        lines = [_line(row, asked.get((phase, row.program)), repeats) for row in rows if row.phase == phase]
        tables.append(f"\n{rows[0].case}, {phase}\n{text_table(header, lines)}")
    return "\n".join(tables)


def growth_table(points: Sequence[Point]) -> str:
    """Time per token of one function.

    Args:
        points: its lengths.

    Returns:
        The table.
    """
    first = {phase: next(p.token_ns for p in points if p.phase == phase) for phase in {p.phase for p in points}}
    rows = [
        [p.phase, p.batch, p.length, f"{p.token_ns:.0f}", f"{p.wall_ns:.0f}", f"{p.token_ns / first[p.phase]:.2f}"]
        for p in points
    ]
    header = [points[0].function, "B", "L", "CPU ns per token", "wall ns per token", "over the first"]
    return "\n" + text_table(header, rows)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Everything that is asked for; for a time that is not reached, what bounds it.

    Args:
        verdicts: in the order of the cases.

    Returns:
        The table and a line for each floor.
    """
    rows = [
        [
            f"{v.case}, {v.phase}",
            v.what,
            _number(v.measured),
            f"{'>=' if v.at_least else '<='} {_number(v.asked)}",
            v.word,
        ]
        for v in verdicts
    ]
    table = text_table(["case", "quantity", "measured", "asked", "verdict"], rows)
    return "\n".join(["", table, *(line for v in verdicts if v.word == "not reached" for line in _floor(v))])


def rates_line(rates: Rates) -> str:
    """The rates of this machine in a line.

    Args:
        rates: measured.

    Returns:
        The line.
    """
    return (
        f"this machine, per second of CPU time: copy {rates.copy / 1e9:.1f} GB, triad {rates.triad / 1e9:.1f} GB, "
        f"{rates.exponentials / 1e9:.2f} G exponentials, {rates.multiply_adds / 1e9:.1f} G multiply-adds"
    )


def write(report: Report, folder: Path) -> list[Path]:
    """Write `result.json` and, if there are any points, `time_per_token.png`; that of another report is removed.

    Args:
        report: everything.
        folder: made if it does not exist.

    Returns:
        The files.
    """
    folder = make_folder(folder)
    files, figure = [folder / "result.json"], folder / "time_per_token.png"
    figure.unlink(missing_ok=True)
    # A verdict is a word of the record, not to be worked out again by who reads it.
    verdicts = [{**asdict(verdict), "verdict": verdict.word} for verdict in report.verdicts]
    checks = [{**asdict(check), "passed": check.passed} for check in report.checks]
    found = {**asdict(report), "checks": checks, "verdicts": verdicts, "environment": _environment()}
    write_json(files[0], found)
    if report.points:
        files.append(figure)
        atomic_write_bytes(figure, _figure(report.points))
    return files


def _environment() -> dict[str, Any]:
    return {**environment.describe(), "peers": _peers()}


def _line(row: Row, verdict: Verdict | None, repeats: int) -> list[str]:
    """One program of a case."""
    if row.timing is None:
        return [row.program, *[""] * 7, row.note]
    times = f"{row.timing.cpu_ms:.2f}", f"{row.timing.wall_ms:.2f}"
    temporaries = "" if row.temporaries is None else f"{row.temporaries / 1e6:.2f}"
    compiling = "" if row.compile_seconds is None else f"{row.compile_seconds:.2f}"
    few = f"(of {row.timing.calls} calls)" if row.timing.calls < repeats else ""
    difference = "" if row.difference is None else f"{row.difference:.0e}"
    # Also a peer of whom nothing is asked may turn out to be none.
    word = verdict.word if verdict else DIFFERENT if row.differs else ""
    asked = "" if verdict is None else _number(verdict.asked)
    return [row.program, *times, temporaries, compiling, difference, f"{row.ratio:.2f}", asked, f"{word} {few}".strip()]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _floor(verdict: Verdict) -> Iterable[str]:
    if verdict.floor is None or verdict.ours_ms is None or verdict.measured is None:
        return []
    peer_ms = verdict.measured * verdict.ours_ms
    parts = [f"{kind.replace('_', '-')} {ms:.2f} ms ({peer_ms / ms:.3g})" for kind, ms in verdict.floor.items() if ms]
    return [
        f"{verdict.case}, {verdict.phase}: ours {verdict.ours_ms:.2f} ms ({verdict.measured:.3g} {verdict.what}); "
        f"at the rates of this machine {', '.join(parts)}"
    ]


def _figure(points: Sequence[Point]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(dict.fromkeys(point.function for point in points))
    for name, phase in dict.fromkeys((point.function, point.phase) for point in points):
        line = sorted((p.length, p.token_ns) for p in points if (p.function, p.phase) == (name, phase))
        style = "-o" if phase == FORWARD else "--s"
        axes.plot(
            *zip(*line, strict=True), style, color=f"C{names.index(name)}", label=f"{name}, {phase}", markersize=4
        )
    axes.set(xscale="log", yscale="log", xlabel="L, tokens of a sequence", ylabel="CPU time per token, ns")
    axes.set_xscale("log", base=2)
    axes.legend(fontsize="x-small", frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


def _peers() -> dict[str, str]:
    """Versions of the optional peers that are installed."""
    found = {}
    for name in ("torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
