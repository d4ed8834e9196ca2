"""`show RUN`: claims, tables and figures of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.evidence import find
from experiments.plain_text import claims_table, duration, filled, text_table
from experiments.results import StoredResult

PresetFilter = Annotated[str | None, tyro.conf.arg(metavar="smoke|cpu|gpu|paper", help_behavior_hint="(default: any)")]


@dataclass(frozen=True)
class Flags:
    """Claims, tables and figures of one run.

    RUN is a run folder, or the id of a result: then its newest finished run, or the committed one.
    """

    preset: PresetFilter = None
    """of an id, only runs of that preset"""
    rows: int = 20
    """most rows to print of a table"""
    runs_dir: RunsDir = None
    """folder of run folders"""


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
    print(f"{heading(stored)}\n\n{claims_table(stored.claims)}")
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
    commit = stored.env.get("commit") or "unknown"
    devices = sorted(set(stored.env.get("devices") or ["no device recorded"]))
    lines = [
        filled(f"{stored.id}: {stored.title}"),
        f"paper:    {stored.paper}",
        f"preset:   {stored.preset}, seeds {', '.join(map(str, stored.seeds))}",
        f"finished: {stored.finished} after {duration(stored.seconds / 60)}",
        f"made by:  {stored.command}",
        f"code:     commit {commit[:12]}{' with changes' if stored.env.get('dirty') else ''}",
        f"on:       {', '.join(devices)}; Python {stored.env.get('python')}, jax {versions.get('jax', 'absent')}",
        *(f"data:     {name}, sha256 {digest[:16]}" for name, digest in stored.data.items()),
        f"folder:   {stored.path}",
    ]
    return "\n".join(lines)


def _table(stored: StoredResult, name: str, limit: int) -> str:
    """The first rows of a table."""
    columns = stored.table(name)
    rows = list(zip(*columns.values(), strict=True))
    more = f"\n... {len(rows) - limit} more rows in result.json" if len(rows) > limit else ""
    return text_table(list(columns), rows[:limit]) + more if columns else "empty"
