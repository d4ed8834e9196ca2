"""`show RUN`: claims, tables and figures of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.environment import code_version
from experiments.errors import UserError
from experiments.evidence import find, objection
from experiments.plain_text import claims_table, duration, filled, text_table
from experiments.registry import discover, load_id
from experiments.results import StoredResult
from experiments.runs import finished_runs

PresetFilter = Annotated[str | None, tyro.conf.arg(metavar="smoke|cpu|gpu|paper", help_behavior_hint="(default: any)")]


@dataclass(frozen=True)
class Flags:
    """Claims, tables and figures of one run.

    RUN is a run folder, or the id of a result: then the run whose verdicts count, of the largest preset; where none
    does, the newest finished one.
    """

    preset: PresetFilter = None
    """of an id, only runs of that preset"""
    rows: int = 20
    """most rows to print of a table"""
    runs_dir: RunsDir = None
    """folder of run folders"""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.rows < 0:
            raise ValueError(f"--rows: got {self.rows}, expected at least 0")


def main(arguments: Sequence[str]) -> int:
    """Print one run.

    Args:
        arguments: words after `show`.

    Returns:
        0.
    """
    flags, words = parse(Flags(), f"{PROGRAM} show RUN", arguments)
    (run,) = exactly(words, "RUN")
    stored = find(run, flags.preset, flags.runs_dir)
    newest = finished_runs(stored.id, flags.preset, flags.runs_dir)[:1] if run == stored.id else []
    print(heading(stored))
    print("".join(f"newest:   {folder}\n" for folder in newest if folder != stored.path))
    print(claims_table(stored.claims))
    for record in stored.claims:
        origin = f"{record['source']}, {record['kind']}, {record['scale']}"
        print(filled(f"{record['claim']} ({origin}): {record['quantity']}", "  "))
    for name in stored.tables:
        print(f"\n{name}\n{_table(stored, name, flags.rows)}")
    figures = sorted(stored.path.glob("figure.*"))
    print("\n" + "\n".join(f"figure: {path}" for path in figures))
    return 0


def heading(stored: StoredResult) -> str:
    """What a run is and where it came from.

    Args:
        stored: the run.

    Returns:
        A few lines.
    """
    versions = stored.env.get("versions", {})
    devices = sorted(set(stored.env.get("devices") or ["no device recorded"]))
    lines = [
        filled(f"{stored.id}: {stored.title}"),
        f"paper:    {stored.paper}",
        f"preset:   {stored.preset}, seeds {', '.join(map(str, stored.seeds))}",
        f"finished: {stored.finished} after {duration(stored.seconds / 60)}",
        f"made by:  {stored.command}",
        f"code:     {code_version(stored.env.get('commit'), stored.env.get('dirty'))}",
        f"on:       {', '.join(devices)}; Python {stored.env.get('python')}, jax {versions.get('jax', 'absent')}",
        *(f"data:     {name}, sha256 {digest[:16]}" for name, digest in stored.data.items()),
        *([filled(f"verdicts: do not count: {reason}")] if (reason := _objection(stored)) else []),
        f"folder:   {stored.path}",
    ]
    return "\n".join(lines)


def _objection(stored: StoredResult) -> str:
    """Why a run of a registered result does not count; an outside file cannot be found to ask it."""
    if stored.id not in discover():
        return ""
    try:
        return objection(load_id(stored.id), stored)
    except UserError as error:  # a broken result file hides none of its runs
        return str(error)


def _table(stored: StoredResult, name: str, limit: int) -> str:
    """The first rows of a table."""
    columns = stored.table(name)
    rows = list(zip(*columns.values(), strict=True))
    more = f"\n... {len(rows) - limit} more rows in result.json" if len(rows) > limit else ""
    return text_table(list(columns), rows[:limit]) + more if columns else "empty"
