"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from experiments.reporting.collect import OWN_HEADER, OWN_TITLE, Line, Report, Section, Shown
from experiments.statistics import VERDICTS


def markdown(report: Report, figures: Mapping[str, str]) -> str:
    """The report as one Markdown page.

    Args:
        report: what it says.
        figures: name of a shown result -> path of its figure, relative to the page.

    Returns:
        The page.
    """
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts = [
        "# Claims and verdicts",
        _counts(report),
        "A verdict compares the 95 % interval over seeds with the threshold that the result file stated before the run."
        " Scale `analogue` is a smaller setting of the same code, `published` the paper's own.",
        *(_section(section, figures) for section in report.sections),
        *([f"## {OWN_TITLE}", _table(OWN_HEADER, report.own)] if report.own else []),
        f"Written by `python -m experiments report` at {report.code} with {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def _counts(report: Report) -> str:
    """Verdicts of each paper."""
    rows = [[paper, *counts.values(), sum(counts.values())] for paper, counts in report.counts.items()]
    return _table(["paper", *VERDICTS, "claims"], rows)


def _section(section: Section, figures: Mapping[str, str]) -> str:
    """One paper."""
    parts = [f"## {section.paper}"]
    if section.tested:
        header = ["claim", "source", "statement", "expected", "measured", "verdict", "scale", "run"]
        parts.append(_table(header, [_tested(line) for line in section.tested]))
    parts += [_result(shown, figures) for shown in section.results]
    if section.untested:
        header = ["claim", "source", "statement", "expected", "known from", "why not"]
        parts += ["### Not tested", _table(header, [_untested(line) for line in section.untested])]
    return "\n\n".join(parts)


def _tested(line: Line) -> list[str]:
    """Cells of a claim that a result tests."""
    row = line.row
    return [
        row.id,
        row.source,
        row.statement,
        line.expected,
        line.measured,
        f"**{line.verdict}**",
        line.scale,
        line.run,
    ]


def _untested(line: Line) -> list[str]:
    """Cells of a claim that no result tests."""
    row = line.row
    return [row.id, row.source, row.statement, str(row.expected), row.certainty, row.reason]


def _result(shown: Shown, figures: Mapping[str, str]) -> str:
    """One result with its figure."""
    picture = f"![{shown.title}]({figures[shown.name]})\n\n" if shown.name in figures else ""
    return f"### {shown.name}: {shown.title}\n\n{picture}    {shown.command}\n\n{shown.made_by}"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: object) -> str:
    """Text that stays within its cell."""
    return " ".join(str(cell).split()).replace("|", "\\|")
