"""`bench loop`: what the training loop costs beside the step itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.commands import PROGRAM
from experiments.commands.flags import exactly, parse
from experiments.errors import UserError
from experiments.plain_text import text_table
from experiments.registry import unknown


@dataclass(frozen=True)
class Flags:
    """Steps per second of the training loop over those of a bare jitted step, measured in turn."""

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
    from experiments.training.benchmark import loop_overhead

    rows = [
        [case.name, f"{case.step_ms:.2f}", f"{case.ratio:.3f}", f"{min(case.ratios):.3f} to {max(case.ratios):.3f}"]
        for case in loop_overhead(flags.pairs, flags.seconds)
    ]
    print(text_table(["case", "bare step, ms", "loop / bare, median", "range"], rows))
    return 0
