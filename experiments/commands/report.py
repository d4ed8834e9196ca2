"""`report`: REPORT.md and REPORT.html, and on request the copies of results that are committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.evidence import evidence_at
from experiments.files import atomic_write_bytes, atomic_write_text, make_folder, replace_folder
from experiments.plain_text import verdict_counts
from experiments.registry import PACKAGE, discover, load_id
from experiments.reporting.collect import Report, collect
from experiments.reporting.markdown import markdown
from experiments.reporting.page import page
from experiments.runs import is_finished

STORED_PRESETS = ("cpu", "gpu")
STORED_FILES = ("arrays.npz", "figure.png", "result.json")


@dataclass(frozen=True)
class Flags:
    """Write REPORT.md and the self-contained REPORT.html: every claim with its verdict, the figures, the commands."""

    out: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("results")
    """folder to write to"""
    runs_dir: RunsDir = None
    """folder of run folders"""
    store: bool = False
    """also copy finished cpu and gpu runs to experiments/<paper>/results/<name>/<preset>, where they are committed"""


def main(arguments: Sequence[str]) -> int:
    """Write the report.

    Args:
        arguments: words after `report`.

    Returns:
        0.
    """
    flags, words = parse(Flags(), f"{PROGRAM} report", arguments)
    exactly(words)
    if flags.store:
        for folder in store(flags.runs_dir):
            print(f"stored: {folder}")
    report = collect(flags.runs_dir)
    make_folder(flags.out)
    figures = _figures(report, flags.out)
    atomic_write_text(flags.out / "REPORT.md", markdown(report, figures))
    atomic_write_text(flags.out / "REPORT.html", page(report))
    claims = [line.verdict for section in report.sections for line in section.lines]
    print(f"{len(claims)} claims: {verdict_counts(claims)}")
    print(f"report: {flags.out / 'REPORT.html'}\nreport: {flags.out / 'REPORT.md'}")
    return 0


def store(runs_dir: str | Path | None = None, package: Path = PACKAGE) -> list[Path]:
    """Copy the runs that count into the package, to be committed.

    Args:
        runs_dir: folder of run folders.
        package: folder to copy to, by default that of the `experiments` package.

    Returns:
        The folders that were written.

    Raises:
        OSError: if one could not be written; the folder is then as it was before.
    """
    written = []
    for id in discover():
        result = load_id(id)
        for preset in (name for name in STORED_PRESETS if name in result.presets):
            stored = evidence_at(result, preset, runs_dir)
            if stored is None or not is_finished(stored.path):
                continue  # no run, or the committed copy itself
            paper, _, name = id.partition("/")
            folder = package / paper / "results" / name / preset
            replace_folder(folder, {file: (stored.path / file).read_bytes() for file in STORED_FILES})
            written.append(folder)
    return written


def _figures(report: Report, out: Path) -> dict[str, str]:
    """Copy figures beside the Markdown page."""
    copied = {}
    for shown in (shown for section in report.sections for shown in section.results):
        if shown.stored is not None and shown.figure is not None:
            path = Path("figures") / f"{shown.id.replace('/', '-')}-{shown.stored.preset}.png"
            make_folder((out / path).parent)
            atomic_write_bytes(out / path, shown.figure.read_bytes())
            copied[shown.name] = path.as_posix()
    return copied
