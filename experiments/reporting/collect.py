"""What the report says, independent of how it is written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import environment
from experiments.claims import Row, ledger
from experiments.errors import UserError
from experiments.evidence import evidence, outside_ids, speaker
from experiments.plain_text import expectation, measurement
from experiments.registry import ResultFile, discover, load_id
from experiments.results import StoredResult
from experiments.runs import finished_runs, read_result
from experiments.statistics import VERDICTS

OWN_TITLE = "Results of your own"
OWN_HEADER = ("claim", "statement", "expected", "measured", "verdict", "command")


@dataclass(frozen=True)
class Line:
    """One row of the ledger and what became of it.

    Args:
        row: of the ledger.
        verdict: of the run that speaks for it, else "not run".
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
    """One run of a result file in the report, or a file that has none.

    Args:
        id: of the result.
        title: first line of the file, or what is wrong with it.
        command: what makes it.
        stored: a run that speaks for some of its claims, if any.
        figure: its picture, if any.
    """

    id: str
    title: str
    command: str
    stored: StoredResult | None = None
    figure: Path | None = None

    @property
    def name(self) -> str:
        """Id and preset."""
        return f"{self.id} ({self.stored.preset})" if self.stored else self.id

    @property
    def made_by(self) -> str:
        """Code and machine of the run, in one line."""
        if self.stored is None:
            return "not run"
        env = self.stored.env
        versions = ", ".join(
            f"{name} {version}" for name, version in env.get("versions", {}).items() if name != "lightnet-lab"
        )
        devices = ", ".join(sorted(set(env.get("devices") or []))) or "no device"
        machine = f"{devices} ({env.get('cpus')} CPU cores)"
        code = environment.code_version(env.get("commit"), env.get("dirty"))
        return f"{self.stored.finished}, {self.stored.seconds:.0f} s on {machine}, {code}; {versions}"


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
    """Everything that the report says; `own` are cells under OWN_HEADER, one row per claim of an outside file."""

    sections: list[Section]
    versions: dict[str, str]
    code: str
    own: list[list[str]]

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
    results = [shown for id in discover() for shown in _shown(id, runs_dir)]
    found: dict[str, list[StoredResult]] = defaultdict(list)
    for shown in results:
        found[shown.id] += [shown.stored] if shown.stored else []
    lines = [_line(row, found[row.result]) for row in ledger().values()]
    papers = dict.fromkeys(line.row.id.partition("/")[0] for line in lines)
    sections = [_section(paper, lines, results) for paper in papers]
    code = environment.code_version(*environment.git_state())
    return Report(sections, environment.versions(), code, _own(runs_dir))


def _section(paper: str, lines: list[Line], results: list[Shown]) -> Section:
    """Claims of a paper and the results that test them, also those in a folder of another name."""
    mine = [line for line in lines if line.row.id.startswith(f"{paper}/")]
    named = {line.row.result for line in mine}
    return Section(paper, mine, [shown for shown in results if shown.id in named or shown.id.startswith(f"{paper}/")])


def _own(runs_dir: str | Path | None) -> list[list[str]]:
    """Claims of the newest run of each result file outside the package, which the ledger does not know."""
    found = [read_result(finished_runs(id, None, runs_dir)[0]) for id in outside_ids(runs_dir)]
    return [
        [record["claim"], record["quantity"], *_measured(record), record["verdict"], stored.command]
        for stored in found
        for record in stored.claims
    ]


def _measured(record: dict[str, Any]) -> tuple[str, str]:
    """What a claim expects, and what was measured."""
    return expectation(record), f"{measurement(record)} (n {record['n']})"


def _shown(id: str, runs_dir: str | Path | None) -> list[Shown]:
    """The runs of one result file that speak for a claim; a file that cannot be imported is shown as such."""
    command = f"python -m experiments run {id}"
    try:
        result: ResultFile = load_id(id)
    except UserError as error:
        return [Shown(id, str(error), command)]
    found = evidence(result, runs_dir)
    speaking = [stored for stored in found if any(speaker(claim.id, found) is stored for claim in result.claims)]
    shown = [Shown(id, result.title, stored.command, stored, _figure(stored)) for stored in speaking or found[:1]]
    return shown or [Shown(id, result.title, command)]


def _figure(stored: StoredResult) -> Path | None:
    """Picture of a run, if it has one."""
    path = stored.path / "figure.png"
    return path if path.is_file() else None


def _line(row: Row, found: Sequence[StoredResult]) -> Line:
    """One row of the ledger with the verdict of the run that speaks for it."""
    stored = speaker(row.id, found)
    if stored is None:
        missing = f"not measured by {row.result}" if found else f"no finished run of {row.result}"
        return Line(row, "not run", str(row.expected), row.reason or missing)
    record = stored.claim(row.id)
    return Line(
        row,
        record["verdict"],
        *_measured(record),
        record["scale"],
        f"{stored.id} ({stored.preset})",
    )
