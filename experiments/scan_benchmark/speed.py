"""One case at a time: our times and those of the peers, and whether what is asked was reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from experiments.scan_benchmark.cases import Case
from experiments.scan_benchmark.functions import Operands, rounded
from experiments.scan_benchmark.machine import Rates, floors
from experiments.scan_benchmark.measure import (
    BOTH,
    FORWARD,
    Missing,
    Program,
    Timing,
    clocked,
    cotangents_of,
    jax_program,
    relative_error,
    take_turns,
)

OURS = "ours"
COMPILE_SECONDS = 5.0  # at most, forward and backward
IGNORED = 0.01  # of the operands; so much may be loop counters and states
SAME = 1e-4  # the largest relative difference of two programs that compute the same in float32
FASTER = "times faster than"
DIFFERENT = "computes something else"


@dataclass(frozen=True)
class Row:
    """One program in one phase.

    Attributes:
        case: title.
        phase: forward, or forward and backward.
        program: "ours" or the name of the peer.
        timing: None where it cannot run.
        temporaries: bytes, None if unknown.
        compile_seconds: CPU time; None if nothing is compiled.
        ratio: its CPU time over ours.
        difference: relative, between its first output and ours; None if they are different functions.
        note: why there is no timing.
    """

    case: str
    phase: str
    program: str
    timing: Timing | None = None
    temporaries: int | None = None
    compile_seconds: float | None = None
    ratio: float | None = None
    difference: float | None = None
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether it should compute what ours does and does not; NaN does not."""
        return self.difference is not None and not self.difference <= SAME


@dataclass(frozen=True)
class Verdict:
    """One number that is asked for.

    Attributes:
        case: title.
        phase: forward, or forward and backward.
        quantity: what is measured.
        measured: None where the peer cannot run, or it cannot be known.
        asked: the bound; None where it cannot be known.
        at_least: whether it is a lower bound.
        peer: whom it is compared with; None for what ours is asked alone.
        judged: whether the size is one that the number was asked for.
        floor: milliseconds of each kind of work at the rates of this machine, for what is a time.
        ours_ms: our CPU time, beside the floor.
        trouble: what makes any number worthless, in words: the verdict then.
    """

    case: str
    phase: str
    quantity: str
    measured: float | None
    asked: float | None
    at_least: bool
    peer: str | None = None
    judged: bool = True
    floor: dict[str, float] | None = None
    ours_ms: float | None = None
    trouble: str = ""

    @property
    def what(self) -> str:
        """The quantity and the peer."""
        return self.quantity if self.peer is None else f"{self.quantity} {self.peer}"

    @property
    def word(self) -> str:
        """The verdict."""
        if self.trouble:
            return self.trouble
        if self.measured is None or self.asked is None:
            return "unknown"
        if not self.judged:
            return "too small"
        reached = self.measured >= self.asked if self.at_least else self.measured <= self.asked
        return "reached" if reached else "not reached"


def measure_case(case: Case, rates: Rates, repeats: int, tiny: bool) -> tuple[list[Row], list[Verdict]]:
    """Time a case forward, and forward and backward.

    Args:
        case: which.
        rates: of this machine.
        repeats: calls of each program.
        tiny: whether its size is another than the one that numbers are asked for.

    Returns:
        Rows, ours first in each phase, and verdicts.
    """
    drawn = case.function.draw(case.shape, case.function.regimes[0], np.random.default_rng(0))
    operands = rounded(drawn, case.function, np.float32)
    if case.zero_state:
        operands = (*operands[:-1], 0 * operands[-1])
    weights = cotangents_of(case.function.run, operands)
    rows, verdicts = [], []
    for phase, cotangents in ((FORWARD, None), (BOTH, weights)):
        found = _phase(case, phase, operands, cotangents, repeats)
        floor = floors(case.work(case.shape, phase == BOTH), rates)
        rows += found
        verdicts += _verdicts(case, phase, found, sum(x.nbytes for x in operands), floor, tiny)
    return rows, verdicts


def _phase(case: Case, phase: str, operands: Operands, cotangents: Operands | None, repeats: int) -> list[Row]:
    programs: dict[str, Program] = {OURS: jax_program(case.function.run, operands, cotangents)}
    missing: dict[str, str] = {}
    for peer in case.peers:
        try:
            programs[peer.name] = peer.prepare(operands, cotangents)
        except Missing as error:
            missing[peer.name] = str(error)
    firsts, outputs = {}, {}
    for name, program in programs.items():
        firsts[name], results = clocked(program.call)
        outputs[name] = np.asarray((results[0] if phase == BOTH else results)[0])
        del results
    different = {peer.name for peer in case.peers if not peer.same}
    errors = {name: relative_error(y, outputs[OURS]) for name, y in outputs.items() if name not in different}
    del outputs
    calls = [program.call for program in programs.values()]
    timings = dict(zip(programs, take_turns(calls, repeats, [*firsts.values()]), strict=True))
    rows = []
    for name in (OURS, *(peer.name for peer in case.peers)):
        if name in missing:
            rows.append(Row(case.title, phase, name, note=missing[name]))
            continue
        program, timing = programs[name], timings[name]
        ratio = timing.cpu_ms / timings[OURS].cpu_ms
        compiled = program.temporaries, program.compile_seconds
        rows.append(Row(case.title, phase, name, timing, *compiled, ratio, errors.get(name)))
    return rows


def _verdicts(
    case: Case, phase: str, rows: Sequence[Row], operand_bytes: int, floor: dict[str, float], tiny: bool
) -> list[Verdict]:
    by_name = {row.program: row for row in rows}
    ours = by_name[OURS]
    ours_ms = None if ours.timing is None else ours.timing.cpu_ms
    found = []
    for peer in case.peers:
        row = by_name[peer.name]
        about = partial(Verdict, case.title, phase, peer=peer.name, judged=not tiny, trouble=_trouble(row))
        if phase in peer.faster:
            bound = peer.faster[phase]
            found.append(about(FASTER, row.ratio, bound, at_least=True, floor=floor, ours_ms=ours_ms))
        if phase in peer.temporaries:
            fraction = peer.temporaries[phase]
            what = f"MB of temporaries, {fraction:.0%} of"
            most = None if row.temporaries is None else fraction * row.temporaries + IGNORED * operand_bytes
            found.append(about(what, _megabytes(ours.temporaries), _megabytes(most), at_least=False))
    if phase == BOTH:
        what = "CPU seconds to compile"
        found.append(Verdict(case.title, phase, what, ours.compile_seconds, COMPILE_SECONDS, at_least=False))
    return found


def _trouble(row: Row) -> str:
    if row.timing is None:
        return "no peer"
    return DIFFERENT if row.differs else ""


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6
