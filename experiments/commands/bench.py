"""`bench loop`: what the training loop costs beside the step itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from experiments.commands import PROGRAM
from experiments.commands.flags import exactly, parse
from experiments.errors import UserError
from experiments.plain_text import text_table
from experiments.registry import unknown


@dataclass(frozen=True)
class Flags:
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


def main(arguments: Sequence[str]) -> int:
    """Print the comparison.

    Args:
        arguments: words after `bench`.

    Returns:
        0.
    """
    flags, words = parse(Flags(), f"{PROGRAM} bench loop", arguments)
    (what,) = exactly(words, "loop")
    if what != "loop":
        raise UserError(unknown("benchmark", what, ["loop"]))
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


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"
