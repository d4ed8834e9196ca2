"""One case at a time: our times and those of the peers, and whether what is asked was reached."""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Verdict:
    """One number that is asked for.

    Attributes:
        case: title.
        phase: forward, or forward and backward.
        quantity: what is measured.
        measured: None where the peer cannot run.
        asked: the bound.
        at_least: whether it is a lower bound.
        judged: whether the size is one that the number was asked for.
        floor: milliseconds of each kind of work at the rates of this machine, for what is a time.
        ours_ms: our CPU time, beside the floor.
    """

    case: str
    phase: str
    quantity: str
    measured: float | None
    asked: float
    at_least: bool
    judged: bool = True
    floor: dict[str, float] | None = None
    ours_ms: float | None = None

    @property
    def word(self) -> str:
        """The verdict."""
        if self.measured is None:
            return "no peer"
        if not self.judged:
            return "too small"
        reached = self.measured >= self.asked if self.at_least else self.measured <= self.asked
        return "reached" if reached else "not reached"


def measure_case(case: Case, rates: Rates, repeats: int, full: bool) -> tuple[list[Row], list[Verdict]]:
    """Time a case forward, and forward and backward.

    Args:
        case: which.
        rates: of this machine.
        repeats: calls of each program.
        full: whether its size is the one that numbers are asked for.

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
        verdicts += _verdicts(case, phase, found, sum(x.nbytes for x in operands), floor, full)
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
    case: Case, phase: str, rows: Sequence[Row], operand_bytes: int, floor: dict[str, float], full: bool
) -> list[Verdict]:
    by_name = {row.program: row for row in rows}
    ours = by_name[OURS]
    assert ours.timing is not None and ours.temporaries is not None and ours.compile_seconds is not None
    found = []
    for peer in case.peers:
        row = by_name[peer.name]
        if phase in peer.faster:
            what = f"times faster than {peer.name}"
            bound = peer.faster[phase]
            found.append(Verdict(case.title, phase, what, row.ratio, bound, True, full, floor, ours.timing.cpu_ms))
        if phase in peer.temporaries:
            fraction = peer.temporaries[phase]
            what = f"MB of temporaries, {fraction:.0%} of {peer.name}"
            bound = (fraction * (row.temporaries or 0) + IGNORED * operand_bytes) / 1e6
            megabytes = None if row.temporaries is None else ours.temporaries / 1e6
            found.append(Verdict(case.title, phase, what, megabytes, bound, False, full))
    if phase == BOTH:
        what = "CPU seconds to compile"
        found.append(Verdict(case.title, phase, what, ours.compile_seconds, COMPILE_SECONDS, False, True))
    return found
