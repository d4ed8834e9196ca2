"""What was found on a device, as it is saved: each row at once, so that a run that is ended leaves what it had."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.files import make_folder, read_json, write_json
from experiments.scan_benchmark.device.cases import DeviceCase, Target
from experiments.scan_benchmark.device.gate import DeviceCheck

SAME = {"float32": 1e-4, "bfloat16": 3e-2}  # largest difference of two programs that compute the same
OURS = ("xla", "pallas")


@dataclass(frozen=True)
class DeviceRow:
    """One program in one phase.

    Attributes:
        case: title.
        phase: forward, or forward and backward.
        program: one of `OURS`, JAX's associative scan, or a peer.
        ms: of one call; None where there is none.
        low: first quartile.
        high: third quartile.
        kernels_ms: of the kernels alone, by CUPTI.
        bytes: that every implementation must move.
        copy_fraction: of the measured speed of a copy, by these bytes.
        product_fraction: of the measured speed of a matrix product, by the formula's products.
        compile_seconds: wall time; of a peer that of its first call.
        temporaries: bytes, None if unknown.
        difference: from XLA's form, relative, the largest of the output and the gradients.
        dtype: of the operands.
        note: why there is no time.
        failed: whether that, or what was computed, is a failure of ours.
    """

    case: str
    phase: str
    program: str
    dtype: str
    ms: float | None = None
    low: float | None = None
    high: float | None = None
    kernels_ms: float | None = None
    bytes: int = 0
    copy_fraction: float | None = None
    product_fraction: float | None = None
    compile_seconds: float | None = None
    temporaries: int | None = None
    difference: float | None = None
    note: str = ""
    failed: bool = False

    @property
    def same(self) -> bool:
        """Whether it computes what XLA's form does; unknown counts, NaN does not."""
        return self.difference is None or self.difference <= SAME[self.dtype]

    @property
    def counts(self) -> bool:
        """Whether it has a time that is worth something."""
        return self.ms is not None and self.same


@dataclass(frozen=True)
class TargetVerdict:
    """One number that is asked for.

    Attributes:
        case: title.
        phase: forward, or forward and backward.
        what: is asked for.
        asked: the bound.
        measured: None where it cannot be known.
        program: which of ours it was measured with.
        verdict: in words.
    """

    case: str
    phase: str
    what: str
    asked: float
    measured: float | None
    program: str | None
    verdict: str


@dataclass
class Record:
    """Everything, in the order in which it was found.

    Attributes:
        device: from `programs.describe`, and whether another device stands in.
        environment: versions and commit.
        settings: what the command was told.
        ceilings: what the device could do at best.
        checks: of the gate.
        rows: programs and their times.
        verdicts: what is asked and what was found.
        left: titles of what there was no time for.
        troubles: of this program itself, in words.
    """

    device: dict[str, Any]
    environment: dict[str, Any]
    settings: dict[str, Any]
    ceilings: dict[str, float] = field(default_factory=dict)
    checks: list[DeviceCheck] = field(default_factory=list)
    rows: list[DeviceRow] = field(default_factory=list)
    verdicts: list[TargetVerdict] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """What went wrong, but with peers, a line for each."""
        checks = [
            f"{c.function}, {c.implementation}, {c.dtype}, {c.regime}: "
            f"{c.note or f'error {c.error:.1e}, gradients {c.gradient_error:.1e}'}"
            for c in self.checks
            if c.failed
        ]
        rows = [
            f"{r.case}, {r.phase}, {r.program}: {r.note or f'differs from xla by {r.difference:.1e}'}"
            for r in self.rows
            if r.failed
        ]
        return checks + rows + self.troubles

    def exact(self, function: str, dtype: str, implementation: str) -> bool:
        """Whether the gate lets a form be timed: it was looked at, and nothing failed or was refused."""
        found = [c for c in self.checks if (c.function, c.dtype, c.implementation) == (function, dtype, implementation)]
        return bool(found) and all(check.passed for check in found)

    def row(self, case: DeviceCase, phase: str, program: str) -> DeviceRow | None:
        """The row of a program, None if there is none."""
        key = (case.title, phase, program)
        return next((row for row in self.rows if (row.case, row.phase, row.program) == key), None)


def path_of(folder: Path, kind: str) -> Path:
    """The file for a kind of device; the figure has the same name.

    Args:
        folder: where.
        kind: what the device calls itself.

    Returns:
        The path.

    Example:
        >>> path_of(Path("a"), "NVIDIA H100 80GB HBM3").name
        'scan-nvidia-h100-80gb-hbm3.json'
    """
    return folder / f"scan-{re.sub('[^a-z0-9]+', '-', kind.lower()).strip('-')}.json"


def write(record: Record, folder: Path) -> Path:
    """Write the record, whole or not at all.

    Args:
        record: everything so far.
        folder: made if it does not exist.

    Returns:
        The file.
    """
    path = path_of(make_folder(folder), record.device["kind"])
    checks = [{**asdict(check), "passed": check.passed} for check in record.checks]
    write_json(path, {**asdict(record), "checks": checks, "failures": record.failures})
    return path


def earlier_rows(folder: Path, kind: str, versions: dict[str, str]) -> list[DeviceRow]:
    """Rows with times of an earlier run on the same kind of device with the same versions.

    Args:
        folder: where that run wrote.
        kind: of the device.
        versions: of the packages.

    Returns:
        The rows; none if there is no such run.
    """
    path = path_of(folder, kind)
    if not path.exists():
        return []
    found = read_json(path)
    if found["environment"]["versions"] != versions:
        return []
    rows = [DeviceRow(**row) for row in found["rows"]]
    return [row for row in rows if row.counts]


def verdict_of(target: Target, record: Record, judged: bool) -> TargetVerdict:
    """What was found of one target, with the fastest of our forms that is exact.

    Args:
        target: which.
        record: all rows.
        judged: whether the sizes are those that the number is asked for.

    Returns:
        The verdict.
    """
    ours = [row for name in OURS if (row := record.row(target.case, target.phase, name)) is not None and row.counts]
    best = min(ours, key=lambda row: row.ms or 0.0, default=None)
    measured, word = None, ""
    if best is None or best.ms is None:
        word = "not measured"
    elif target.peer is None:
        measured = best.copy_fraction
    else:
        peer = record.row(target.case, target.phase, target.peer)
        if peer is None or peer.ms is None:
            word = f"no peer: {peer.note}" if peer is not None and peer.note else "no peer"
        elif not peer.same:
            word = "the peer computes something else"
        else:
            measured = peer.ms / best.ms
    if measured is not None:
        word = "too small" if not judged else "reached" if measured >= target.asked else "not reached"
    program = None if best is None else best.program
    return TargetVerdict(target.case.title, target.phase, target.what, target.asked, measured, program, word)
