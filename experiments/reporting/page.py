"""The report as one HTML page that needs nothing else: figures inside, no script, light and dark."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from experiments.reporting.collect import OWN_HEADER, OWN_TITLE, Line, Report, Section, Shown
from experiments.statistics import VERDICTS

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --paper: #fff; --line: #d5d9dd; --soft: #f3f5f7;
  --holds: #137333; --not: #b3261e; --open: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --paper: #16191c; --line: #3a4046; --soft: #20252a;
  --holds: #7fd79a; --not: #ff9a92; --open: #f0c265; } }
body { margin: 0 auto; max-width: 78rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; }
th, td { border-bottom: 1px solid var(--line); padding: 0.35rem 0.6rem; text-align: left; vertical-align: top; }
th { background: var(--soft); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.holds { color: var(--holds); font-weight: 600; } .does-not-hold { color: var(--not); font-weight: 600; }
.inconclusive { color: var(--open); font-weight: 600; } .not-run { opacity: 0.75; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
code { background: var(--soft); padding: 0.1rem 0.3rem; border-radius: 3px; overflow-wrap: anywhere; }
small { opacity: 0.8; } summary { cursor: pointer; }
"""


def page(report: Report) -> str:
    """The report as one HTML page.

    Args:
        report: what it says.

    Returns:
        The page.

    Raises:
        OSError: if a figure cannot be read.
    """
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    sections = "\n".join([*(_section(section) for section in report.sections), _own(report)])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Claims and verdicts</title><style>{_STYLE}</style></head><body>
<h1>Claims and verdicts</h1>
{_counts(report)}
<p>A verdict compares the 95&nbsp;% interval over seeds with the threshold that the result file stated before the run.
Scale <i>analogue</i> is a smaller setting of the same code, <i>published</i> the paper's own.</p>
{sections}
<p><small>Written by <code>python -m experiments report</code> at {escape(report.code)}
with {escape(versions)}.</small></p>
</body></html>
"""


def _counts(report: Report) -> str:
    """Verdicts of each paper."""
    header = ["paper", *(f"<th class=number>{name}</th>" for name in [*VERDICTS, "claims"])]
    rows = [
        [escape(paper), *(f"<td class=number>{count}</td>" for count in [*counts.values(), sum(counts.values())])]
        for paper, counts in report.counts.items()
    ]
    return _table(header, rows)


def _section(section: Section) -> str:
    """One paper."""
    parts = [f"<h2>{escape(section.paper)}</h2>"]
    if section.tested:
        header = ["claim", "source", "statement", "expected", "measured", "verdict", "scale", "run"]
        parts.append(_table(header, [_tested(line) for line in section.tested]))
    parts += [_result(shown) for shown in section.results]
    if section.untested:
        header = ["claim", "source", "statement", "expected", "known from", "why not"]
        table = _table(header, [_untested(line) for line in section.untested])
        parts.append(f"<details><summary>{len(section.untested)} claims not tested</summary>{table}</details>")
    return "\n".join(parts)


def _own(report: Report) -> str:
    """Claims of result files outside the package."""
    rows = [[escape(cell) for cell in row] for row in report.own]
    return f"<h2>{OWN_TITLE}</h2>{_table(OWN_HEADER, rows)}" if rows else ""


def _tested(line: Line) -> list[str]:
    """Cells of a claim that a result tests."""
    row = line.row
    verdict = f'<td class="{line.verdict.replace(" ", "-")}">{line.verdict}</td>'
    before = [escape(text) for text in (row.id, row.source, row.statement, line.expected, line.measured)]
    return [*before, verdict, escape(line.scale), escape(line.run)]


def _untested(line: Line) -> list[str]:
    """Cells of a claim that no result tests."""
    row = line.row
    return [escape(str(text)) for text in (row.id, row.source, row.statement, row.expected, row.certainty, row.reason)]


def _result(shown: Shown) -> str:
    """One result with its figure."""
    title = escape(f"{shown.name}: {shown.title}")
    picture = f'<figure><img alt="{title}" src="{_embedded(shown.figure)}"></figure>' if shown.figure else ""
    made = f"<p><code>{escape(shown.command)}</code><br><small>{escape(shown.made_by)}</small></p>"
    return f"<h3>{title}</h3>{picture}{made}"


def _embedded(figure: Path) -> str:
    """A picture as an address that contains it."""
    return f"data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode('ascii')}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are already HTML."""
    head = "".join(_cell(name, "th") for name in header)
    body = "\n".join("<tr>" + "".join(_cell(cell, "td") for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(content: str, tag: str) -> str:
    """A cell, unless it comes as one."""
    return content if content.startswith(f"<{tag}") else f"<{tag}>{content}</{tag}>"
