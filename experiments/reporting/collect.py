"""What the report says, independent of how it is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import environment
from experiments.claims import Row, ledger
from experiments.errors import UserError
from experiments.evidence import evidence
from experiments.plain_text import expectation, interval
from experiments.registry import ResultFile, discover, load_id
from experiments.results import StoredResult
from experiments.statistics import VERDICTS


@dataclass(frozen=True)
class Line:
    """One row of the ledger and what became of it.

    Args:
        row: of the ledger.
        verdict: of its result's counting run, else "not run".
        expected: the test that was stated before the run, else the ledger's words.
        measured: mean and interval, or why nothing was measured.
        scale: "analogue" or "published", empty if it was not run.
        run: result and preset of the verdict, empty if it was not run.
    """

    row: Row
    verdict: str
    expected: str
    measured: str
    scale: str = ""
    run: str = ""


@dataclass(frozen=True)
class Shown:
    """One result file in the report.

    Args:
        id: of the result.
        title: first line of the file, or what is wrong with it.
        command: what makes it.
        stored: the run whose verdicts count, if any.
        figure: its picture, if any.
    """

    id: str
    title: str
    command: str
    stored: StoredResult | None = None
    figure: Path | None = None

    @property
    def made_by(self) -> str:
        """Code and machine of the run, in one line."""
        if self.stored is None:
            return "not run"
        env = self.stored.env
        versions = ", ".join(
            f"{name} {version}" for name, version in env.get("versions", {}).items() if name != "lightnet-lab"
        )
        commit = f"commit {(env.get('commit') or 'unknown')[:12]}{' with changes' if env.get('dirty') else ''}"
        devices = ", ".join(sorted(set(env.get("devices") or []))) or "no device"
        machine = f"{devices} ({env.get('cpus')} CPU cores)"
        return f"{self.stored.finished}, {self.stored.seconds:.0f} s on {machine}, {commit}; {versions}"


@dataclass(frozen=True)
class Section:
    """One paper folder: its claims and its results."""

    paper: str
    lines: list[Line]
    results: list[Shown]

    @property
    def tested(self) -> list[Line]:
        """Claims that a result tests."""
        return [line for line in self.lines if line.row.result]

    @property
    def untested(self) -> list[Line]:
        """Claims that no result tests."""
        return [line for line in self.lines if not line.row.result]


@dataclass(frozen=True)
class Report:
    """Everything that the report says."""

    sections: list[Section]
    versions: dict[str, str]
    commit: str

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Paper folder -> verdict -> number of claims, "all" last."""
        counted = {section.paper: Counter(line.verdict for line in section.lines) for section in self.sections}
        counted["all"] = sum(counted.values(), Counter())
        return {paper: {verdict: count[verdict] for verdict in VERDICTS} for paper, count in counted.items()}


def collect(runs_dir: str | Path | None = None) -> Report:
    """Ledger, result files and the runs that count.

    Args:
        runs_dir: folder of run folders.

    Returns:
        The report, with one section for each paper folder of the ledger.

    Raises:
        UserError: if the ledger or a stored result is damaged.
    """
    results = [_shown(id, runs_dir) for id in discover()]
    stored = {shown.id: shown.stored for shown in results}
    lines = [_line(row, stored.get(row.result)) for row in ledger().values()]
    papers = dict.fromkeys(line.row.id.partition("/")[0] for line in lines)
    sections = [
        Section(
            paper,
            [line for line in lines if line.row.id.startswith(f"{paper}/")],
            [shown for shown in results if shown.id.startswith(f"{paper}/")],
        )
        for paper in papers
    ]
    commit, dirty = environment.git_state()
    return Report(sections, environment.versions(), f"{commit or 'unknown'}{' with changes' if dirty else ''}")


def _shown(id: str, runs_dir: str | Path | None) -> Shown:
    """One result file; one that cannot be imported is shown as such."""
    try:
        result: ResultFile = load_id(id)
    except UserError as error:
        return Shown(id, str(error), f"python -m experiments run {id}")
    stored = evidence(result, runs_dir)
    figure = stored.path / "figure.png" if stored else None
    command = stored.command if stored else f"python -m experiments run {id}"
    return Shown(id, result.title, command, stored, figure if figure and figure.is_file() else None)


def _line(row: Row, stored: StoredResult | None) -> Line:
    """One row of the ledger with its verdict."""
    record: dict[str, Any] | None = None
    if stored is not None:
        record = next((claim for claim in stored.claims if claim["claim"] == row.id), None)
    if stored is None or record is None:
        return Line(row, "not run", str(row.expected), row.reason or f"no finished run of {row.result}")
    measured = interval(record["measured"], record["ci95"]) + (f" (n {record['n']})" if record["n"] else "")
    return Line(
        row, record["verdict"], expectation(record), measured, record["scale"], f"{stored.id} ({stored.preset})"
    )
