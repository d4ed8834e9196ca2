"""Numbers, claims and tables as plain text of at most 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 100


def text_table(header: Sequence[str], rows: Iterable[Sequence[Any]], width: int = WIDTH) -> str:
    """Columns aligned by spaces; the widest ones are wrapped between words until the table fits.

    Args:
        header: names of the columns.
        rows: cells, one per column; None is shown as a dash.
        width: most characters on a line.

    Returns:
        Lines without a final newline.

    Example:
        >>> print(text_table(["claim", "n"], [["demo/a", 3]]))
        claim   n
        ------  -
        demo/a  3
    """
    cells = [[str(name) for name in header]] + [[cell(value) for value in row] for row in rows]
    if _natural_width(cells) > width:
        cells[0] = [name.replace("_", " ") for name in cells[0]]  # so that long names of columns can be wrapped
    columns = list(zip(*cells, strict=True))
    widths = [max(1, *map(len, column)) for column in columns]
    longest_words = [max(len(word) for text in column for word in [*text.split(), ""]) for column in columns]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        # An id is never broken, so that it can be searched for and copied; beyond that a table may be too wide.
        room = [have - need for have, need in zip(widths, longest_words, strict=True)]
        candidates = [index for index, spare in enumerate(room) if spare > 0]
        if not candidates:
            break
        widths[max(candidates, key=lambda index: widths[index])] -= 1
    lines = [line for row in cells[:1] for line in _wrapped(row, widths)]
    lines.append("  ".join("-" * width for width in widths))
    lines += [line for row in cells[1:] for line in _wrapped(row, widths)]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value as the text of a cell.

    Args:
        value: a number, text, a list of them, or None.

    Returns:
        At most five significant digits of a float; a dash for None.

    Example:
        >>> cell(0.123456), cell(None), cell([1, 2.5])
        ('0.12346', '-', '1, 2.5')
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    return str(value)


def interval(center: float | None, ci95: Sequence[float] | None) -> str:
    """A mean with the half width of its 95 % interval, to two digits of the latter.

    Args:
        center: the mean, None if nothing was measured.
        ci95: the interval, None if there is none.

    Returns:
        The text.

    Example:
        >>> interval(0.693147, (0.6919, 0.694394)), interval(2.0, None), interval(None, None)
        ('0.6931 ± 0.0012', '2', '-')
    """
    if center is None:
        return cell(center)
    if not math.isfinite(center):
        return "not finite"
    half = (ci95[1] - ci95[0]) / 2 if ci95 else 0.0
    if half <= 0:
        return cell(float(center))
    if not 1e-6 < half < 1e6:
        return f"{center:.4g} ± {half:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{center:.{decimals}f} ± {half:.{decimals}f}"


def measurement(record: dict[str, Any]) -> str:
    """What was measured of a claim.

    Args:
        record: a claim of `result.json`.

    Returns:
        Mean and half width of the 95 % interval, or how many values are NaN or infinite.

    Example:
        >>> measurement({"measured": math.nan, "ci95": None, "values": [0.1, math.inf, math.nan]})
        'not finite (2 of 3)'
    """
    lost = sum(not math.isfinite(value) for value in record["values"])
    if lost:
        return f"not finite ({lost} of {len(record['values'])})"
    return interval(record["measured"], record["ci95"])


def expectation(record: dict[str, Any]) -> str:
    """What a claim expects.

    Args:
        record: a claim of `result.json`.

    Returns:
        Value and tolerance, or the threshold.

    Example:
        >>> expectation({"test": "below", "expected": 0.015, "tolerance": 0.0})
        '≤ 0.015'
    """
    expected = cell(record["expected"])
    if record["test"] == "within":
        return f"{expected} ± {cell(record['tolerance'])}"
    return f"{'≤' if record['test'] == 'below' else '≥'} {expected}"


def claims_table(claims: Iterable[dict[str, Any]]) -> str:
    """The claims of one run with their verdicts.

    Args:
        claims: records of `result.json`.

    Returns:
        The table.
    """
    header = ["claim", "measured (mean ± 95 %)", "n", "expected", "verdict"]
    rows = [
        [
            record["claim"],
            measurement(record),
            record["n"],
            expectation(record),
            record["verdict"],
        ]
        for record in claims
    ]
    return text_table(header, rows) if rows else "no claims"


def duration(minutes: float) -> str:
    """Minutes as a person says them.

    Args:
        minutes: how many.

    Returns:
        Seconds below two minutes, hours above two hours.

    Example:
        >>> duration(0.1), duration(4), duration(1440)
        ('6 s', '4 min', '24 h')
    """
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def verdict_counts(verdicts: Iterable[str]) -> str:
    """How many of each verdict, in words.

    Args:
        verdicts: of some claims.

    Returns:
        The counts, the most telling first.

    Example:
        >>> verdict_counts(["inconclusive", "holds", "holds"])
        '2 hold, 1 inconclusive'
    """
    counts = Counter(verdicts)
    words = {
        "holds": ("holds", "hold"),
        "does not hold": ("does not hold", "do not hold"),
        "inconclusive": ("inconclusive",) * 2,
        "not run": ("not run",) * 2,
    }
    return ", ".join(f"{counts[name]} {forms[counts[name] > 1]}" for name, forms in words.items() if counts[name])


def filled(text: str, indent: str = "") -> str:
    """A sentence on as many lines as it needs.

    Args:
        text: one paragraph.
        indent: what every line begins with.

    Returns:
        Lines of at most 100 columns; the ones after the first are indented two more.

    Example:
        >>> filled("claim", "  ")
        '  claim'
    """
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _natural_width(cells: Sequence[Sequence[str]]) -> int:
    """Width of a table of which nothing is wrapped."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return sum(widths) + 2 * (len(widths) - 1)


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One row as lines."""
    columns = [
        textwrap.wrap(text, width, break_on_hyphens=False) or [""] for text, width in zip(row, widths, strict=True)
    ]
    height = max(map(len, columns))
    padded = [[*column, *[""] * (height - len(column))] for column in columns]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for parts in zip(*padded, strict=True)
    ]
