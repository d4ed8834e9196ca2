"""`list`: every result with its source, presets, minutes and last verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.errors import UserError
from experiments.evidence import evidence
from experiments.plain_text import duration, text_table, verdict_counts
from experiments.registry import ResultFile, discover, load_id
from experiments.results import StoredResult


@dataclass(frozen=True)
class Flags:
    """Every result: id, figure or table of its paper, presets with their minutes, last verdicts."""

    runs_dir: RunsDir = None
    """folder of run folders"""


def main(arguments: Sequence[str]) -> int:
    """Print the list.

    Args:
        arguments: words after `list`.

    Returns:
        0.
    """
    flags, words = parse(Flags(), f"{PROGRAM} list", arguments)
    exactly(words)
    rows: dict[str, list[list[str]]] = {}
    for id in discover():
        try:
            result = load_id(id)
            rows.setdefault(result.about.paper, []).append(_row(result, evidence(result, flags.runs_dir)))
        except UserError as error:  # one broken file hides no other
            rows.setdefault("cannot be used", []).append(["", id, str(error), "", ""])
    for paper, lines in rows.items():
        print(f"{paper}\n{text_table(['', 'id', 'source', 'presets', 'last verdicts'], lines)}\n")
    print("* = headline, run by `make reproduce`" if rows else "no results")
    return 0


def _row(result: ResultFile, stored: StoredResult | None) -> list[str]:
    """One line of the list."""
    presets = ", ".join(f"{name} {duration(minutes)}" for name, minutes in result.about.minutes.items())
    last = "not run"
    if stored is not None:
        last = f"{verdict_counts(record['verdict'] for record in stored.claims)} ({stored.preset})"
    return ["*" if result.about.headline else "", result.id, result.about.source, presets, last]
