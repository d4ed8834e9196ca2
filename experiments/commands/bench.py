"""`bench`: what the training loop costs beside the step itself, and what the scans cost beside their peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import tyro

from experiments.commands import PROGRAM
from experiments.commands.flags import exactly, parse
from experiments.errors import UserError
from experiments.plain_text import text_table
from experiments.registry import unknown
from experiments.runs import runs_folder
from experiments.scan_benchmark import FUNCTIONS

HELP = {"-h", "--help"}


@dataclass(frozen=True)
class LoopFlags:
    """The training loop against a bare jitted step, the time that saving takes, and the speed of the data."""

    pairs: int = 5
    """measurements of each"""
    seconds: float = 2.0
    """length of one measurement"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.pairs < 1:
            raise ValueError(f"pairs: got {self.pairs}, expected at least 1")
        if not 0 < self.seconds < 3600:
            raise ValueError(f"seconds: got {self.seconds}, expected a time above 0 and below an hour")


@dataclass(frozen=True)
class ScanFlags:
    """Every recurrence of lightnet.scan: whether it is exact, and if so its times beside what a user would write."""

    device: Literal["cpu", "gpu", "tpu"] = "cpu"
    """gpu, tpu: every form, kernels among them, on that device, beside peers in torch where they are installed"""
    preset: Literal["smoke", "cpu"] = "cpu"
    """cpu: the sizes that numbers are asked for, minutes on two cores, on another device its own; smoke: seconds, too
    small for a verdict, and a CPU may stand in for the device"""
    repeats: int = 20
    """calls of each program, of which the median counts; not of another device"""
    minutes: float = 9.0
    """on another device, after which nothing more is begun"""
    resume: bool = False
    """on another device, take rows that --out has of it, of the same versions, and measure the others"""
    only: str = ",".join(FUNCTIONS)
    """functions, separated by commas"""
    out: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: bench/scan in LIGHTNET_RUNS or runs)")] = (
        None
    )
    """folder for result.json and the figure; of another device they are called after it"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.repeats <= 10_000:
            raise ValueError(f"repeats: got {self.repeats}, expected 1 to 10000")
        if not 0 < self.minutes <= 600:
            raise ValueError(f"minutes: got {self.minutes}, expected a time above 0 and at most 600")
        for name in self._named:
            if name not in FUNCTIONS:
                raise ValueError(f"only: {unknown('function', name, FUNCTIONS)}")

    @property
    def groups(self) -> list[str]:
        """The functions that are named, in the order of all."""
        return [name for name in FUNCTIONS if name in self._named]

    @property
    def _named(self) -> list[str]:
        return [name.strip() for name in self.only.split(",")]


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark.

    Args:
        arguments: words after `bench`: which, and its flags.

    Returns:
        0; 1 if a scan is not exact, and was not timed for that reason.

    Raises:
        UserError: if there is no such benchmark, or a flag is refused.
    """
    place = _first_word(arguments)
    if place < len(arguments):
        which = arguments[place]
        if which not in BENCHMARKS:
            raise UserError(unknown("benchmark", which, BENCHMARKS))
        return BENCHMARKS[which][1]([*arguments[:place], *arguments[place + 1 :]])
    if HELP & set(arguments):
        purposes = "\n".join(f"  {name:<6}{purpose}" for name, (purpose, _) in BENCHMARKS.items())
        print(f"usage: {PROGRAM} bench BENCHMARK [--help] ...\n\n{purposes}")
        return 0
    raise UserError(f"the benchmark is missing; there is: {', '.join(BENCHMARKS)}")


def _first_word(arguments: Sequence[str]) -> int:
    """Place of the first word that is no flag and no flag's value, of which every flag but help takes one."""
    place = 0
    while place < len(arguments) and arguments[place].startswith("-"):
        place += 1 if "=" in arguments[place] or arguments[place] in HELP else 2
    return place


def _loop(arguments: Sequence[str]) -> int:
    """Print the comparison."""
    flags, words = parse(LoopFlags(), f"{PROGRAM} bench loop", arguments)
    exactly(words)
    from experiments.training.benchmark import data_tokens_per_second, loop_overhead, saving_overhead

    rows = [
        [case.name, f"{case.step_ms:.2f}", f"{case.ratio:.3f}", _range(case.ratios)]
        for case in loop_overhead(flags.pairs, flags.seconds)
    ]
    print(text_table(["loop", "bare step, ms", "loop / bare, median", "range"], rows))
    rows = [
        [f"{case.megabytes:.1f} MB", f"{case.blocked:.1%}", f"{median(case.ratios):.3f}", _range(case.ratios)]
        for case in saving_overhead(flags.pairs, max(2, round(flags.seconds)))
    ]
    print("\n" + text_table(["one save per 100 steps of 10 ms", "blocked", "with / without, median", "range"], rows))
    print(f"\ndata: {data_tokens_per_second(flags.seconds):.3g} tokens per second per process")
    return 0


def _scan(arguments: Sequence[str]) -> int:
    """Check, time and report."""
    flags, words = parse(ScanFlags(), f"{PROGRAM} bench scan", arguments)
    exactly(words)
    folder, tiny = flags.out or runs_folder() / "bench" / "scan", flags.preset == "smoke"
    if flags.device != "cpu":
        from experiments.scan_benchmark.device.command import Plan, benchmark_device

        return benchmark_device(Plan(flags.device, folder, flags.groups, flags.minutes, tiny, flags.resume))
    from experiments.scan_benchmark.command import benchmark

    return benchmark(folder, flags.groups, flags.repeats, tiny)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


BENCHMARKS: Mapping[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "loop": ("the training loop beside a bare step, saving, and the speed of the data", _loop),
    "scan": ("the recurrences of lightnet.scan beside what a user would write", _scan),
}
