"""What was found on a device as text, and as a figure."""

import io
from collections.abc import Sequence
from pathlib import Path

from experiments.files import atomic_write_bytes
from experiments.plain_text import text_table
from experiments.scan_benchmark.device.cases import DeviceCase
from experiments.scan_benchmark.device.gate import DeviceCheck
from experiments.scan_benchmark.device.record import DeviceRow, Record, TargetVerdict, path_of
from experiments.scan_benchmark.measure import BOTH, FORWARD

WIDTH = 120
NONE = "none"
PHASES = {FORWARD: "forward", BOTH: "with backward"}
FASTER = 1.02  # a ratio of times above which the kernel is faster; less may be noise


def ceilings_line(ceilings: dict[str, float]) -> str:
    """What the device could do at best.

    Args:
        ceilings: measured.

    Returns:
        The line.
    """
    if not ceilings:
        return "the ceilings could not be measured: there are no fractions of them"
    copy, product = ceilings["copy_bytes"] / 1e9, 2 * ceilings["multiply_adds"] / 1e12
    return f"measured ceilings: copy {copy:.4g} GB/s read and written, matrix product in bfloat16 {product:.4g} TFLOP/s"


def gate_table(checks: Sequence[DeviceCheck]) -> str:
    """Of each form and precision the worst regime, or why there is none.

    Args:
        checks: of the gate.

    Returns:
        The table.
    """
    forms: dict[tuple[str, str, str], list[DeviceCheck]] = {}
    for check in checks:
        forms.setdefault((check.function, check.implementation, check.dtype), []).append(check)
    rows = []
    for (function, implementation, dtype), found in forms.items():
        notes = [check for check in found if check.note]
        if notes:
            word = "refused" if notes[0].refused else f"FAILED, {notes[0].regime}"
            rows.append([function, implementation, dtype, None, None, f"{word}: {notes[0].note}"])
            continue
        worst = max(found, key=lambda c: (not c.passed, c.error / c.bounds[0]))
        errors = f"{worst.error:.1e}", f"{max(c.gradient_error for c in found):.1e}"
        word = "exact" if worst.passed else f"FAILED: {', '.join(c.regime for c in found if not c.passed)}"
        rows.append([function, implementation, dtype, *errors, word])
    return text_table(["function", "form", "operands", "worst error", "of gradients", "gate"], rows, WIDTH)


def case_table(title: str, rows: Sequence[DeviceRow]) -> str:
    """One case.

    Args:
        title: of the case.
        rows: its programs in both phases.

    Returns:
        The title and the table.
    """
    lines = []
    for row in rows:
        if row.ms is None:
            lines.append([PHASES[row.phase], row.program, *[None] * 6, f"{'FAILED: ' if row.failed else ''}{row.note}"])
            continue
        word = "" if row.same else "FAILED: not what xla computes" if row.failed else "computes something else"
        lines.append(
            [
                PHASES[row.phase],
                row.program,
                f"{row.ms:.4g}",
                None if row.kernels_ms is None else f"{row.kernels_ms:.4g}",
                _percent(row.copy_fraction),
                _percent(row.product_fraction or None),
                None if row.temporaries is None else f"{row.temporaries / 1e6:.1f}",
                None if row.difference is None else f"{row.difference:.0e}",
                word,
            ]
        )
    header = ["phase", "program", "ms", "kernels ms", "of copy", "of product", "temp. MB", "difference", "note"]
    return f"\n{title}\n{text_table(header, lines, WIDTH)}"


def kernel_table(cases: Sequence[DeviceCase], record: Record) -> str:
    """Whether the kernel beats XLA's form, by function, precision and phase: where the default should take it.

    Args:
        cases: all.
        record: with their rows.

    Returns:
        The table.
    """
    found: dict[tuple[str, str, str], dict[str, float | str]] = {}
    for case in cases:
        for phase in (FORWARD, BOTH):
            xla, kernel = (record.row(case, phase, program) for program in ("xla", "pallas"))
            if xla is not None and xla.ms is not None:
                found.setdefault((case.function, case.dtype, phase), {})[str(case.shape)] = _ratio(xla.ms, kernel)
    rows = []
    for (function, dtype, phase), times in found.items():
        listed = [f"{shape.replace(' ', '')} {x if isinstance(x, str) else f'{x:.2f}'}" for shape, x in times.items()]
        ratios = [ratio for ratio in times.values() if not isinstance(ratio, str)]
        everywhere = all(ratio == NONE for ratio in times.values())
        rows.append([function, dtype, phase, _answer(ratios), "" if everywhere else ", ".join(listed)])
    header = ["function", "operands", "phase", "kernel beats XLA", "XLA's time over the kernel's"]
    return text_table(header, rows, WIDTH)


def verdict_table(verdicts: Sequence[TargetVerdict]) -> str:
    """Everything that is asked for.

    Args:
        verdicts: in the order of the targets.

    Returns:
        The table.
    """
    rows = [
        [f"{v.case}, {v.phase}", v.what, _number(v.measured), f">= {_number(v.asked)}", v.program, v.verdict]
        for v in verdicts
    ]
    return text_table(["case", "quantity", "measured", "asked", "with", "verdict"], rows, WIDTH)


def write_figure(record: Record, folder: Path) -> Path | None:
    """Draw the fraction of the speed of a copy that each program reaches, and write it beside the record.

    Args:
        record: everything.
        folder: of the record.

    Returns:
        The file; None if there is nothing to draw.
    """
    if not any(row.copy_fraction is not None for row in record.rows):
        return None
    path = path_of(folder, record.device["kind"]).with_suffix(".png")
    atomic_write_bytes(path, _figure(record))
    return path


def _figure(record: Record) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = list(dict.fromkeys(row.case for row in record.rows))
    programs = list(dict.fromkeys(row.program for row in record.rows if row.ms is not None))
    figure = Figure(figsize=(11, 1.5 + 0.28 * len(titles)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, phase in zip(panels, (FORWARD, BOTH), strict=True):
        for place, program in enumerate(programs):
            rows = [r for r in record.rows if (r.program, r.phase) == (program, phase) and r.copy_fraction is not None]
            heights = [titles.index(row.case) for row in rows]
            fractions = [100 * (row.copy_fraction or 0) for row in rows]
            marker = "osD^v<>Ph"[place % 9]
            axes.plot(fractions, heights, marker, color=f"C{place}", label=program, markersize=5, alpha=0.8)
        axes.set(xscale="log", xlabel="bytes that must be moved, % of the measured copy", title=phase)
        axes.axvline(100, color="0.6", linewidth=0.8)
        axes.grid(axis="y", linewidth=0.3)
    panels[0].set_yticks(range(len(titles)), titles, fontsize="x-small")
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="x-small")
    figure.suptitle(f"lightnet.scan on {record.device['kind']}{' (standing in)' if record.device['stand_in'] else ''}")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def _ratio(xla_ms: float, kernel: DeviceRow | None) -> float | str:
    """XLA's time over the kernel's, or why there is none."""
    if kernel is None:
        return NONE
    if kernel.ms is None or not kernel.same:
        return "failed" if kernel.failed else "refused"
    return xla_ms / kernel.ms


def _answer(ratios: Sequence[float]) -> str:
    if not ratios:
        return "no kernel"
    better = sum(ratio >= FASTER for ratio in ratios)
    if better == len(ratios):
        return "yes"
    return f"at {better} of {len(ratios)} sizes" if better else "no"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.1f} %"
