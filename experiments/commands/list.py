"""`list`: every result with its source, presets, minutes and last verdicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import runs
from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.errors import UserError
from experiments.evidence import evidence, outside_ids, speaker
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
    for id in outside_ids(flags.runs_dir):
        rows.setdefault("results of your own: newest run, whatever its settings", []).append(_own(id, flags.runs_dir))
    for paper, lines in rows.items():
        print(f"{paper}\n{text_table(['', 'id', 'source', 'presets', 'last verdicts'], lines)}\n")
    print("* = headline, run by `make reproduce`" if rows else "no results")
    return 0


def _own(id: str, runs_dir: Path | None) -> list[str]:
    """One line about a result file outside the package, of which only the runs are known."""
    try:
        stored = runs.read_result(runs.finished_runs(id, None, runs_dir)[0])
    except UserError as error:
        return ["", id, str(error), "", ""]
    verdicts = verdict_counts(record["verdict"] for record in stored.claims) or "no claims"
    return ["", id, stored.paper, stored.preset, verdicts]


def _row(result: ResultFile, found: Sequence[StoredResult]) -> list[str]:
    """One line of the list."""
    presets = ", ".join(f"{name} {duration(minutes)}" for name, minutes in result.about.minutes.items())
    return ["*" if result.about.headline else "", result.id, result.about.source, presets, _verdicts(result, found)]


def _verdicts(result: ResultFile, found: Sequence[StoredResult]) -> str:
    """How many of each verdict, with the preset that they come from."""
    verdicts: dict[str, list[str]] = defaultdict(list)
    for claim in result.claims:
        stored = speaker(claim.id, found)
        verdicts[stored.preset if stored else ""].append(stored.claim(claim.id)["verdict"] if stored else "not run")
    told = [
        f"{verdict_counts(verdicts[stored.preset])} ({stored.preset})" for stored in found if verdicts[stored.preset]
    ]
    return ", ".join([*told, *([verdict_counts(verdicts[""])] if told and verdicts[""] else [])]) or "not run"
