"""The ledger `CLAIMS.toml`: every claim that we know of, and the result that tests it or the reason why none does."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from experiments.errors import UserError

LEDGER = Path(__file__).resolve().parent / "CLAIMS.toml"

# How we know of a claim, the surest first.
CERTAINTIES = ("read", "code", "rederived", "plot", "secondary", "inferred", "memory")


@dataclass(frozen=True)
class Row:
    """One claim of the ledger.

    Args:
        id: `<paper folder>/<short name>`.
        paper: title and identifier of the paper.
        source: where in the paper.
        statement: the claim.
        expected: number with its unit, direction, or "unknown".
        certainty: how we know of it, one of CERTAINTIES.
        result: id of the result that tests it, or empty.
        reason: why no result tests it, or empty.

    Raises:
        ValueError: if a field is missing or not allowed.

    Example:
        >>> Row("demo/a", "A paper", "Figure 1", "It is small.", "below 1", "sure", "demo/figure", "")
        Traceback (most recent call last):
        ...
        ValueError: claim demo/a: certainty must be one of read, code, rederived, plot, secondary, inferred, memory, \
got 'sure'
    """

    id: str
    paper: str
    source: str
    statement: str
    expected: str | float
    certainty: str
    result: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse a row that says too little or contradicts itself."""
        for name in ("id", "paper", "source", "statement", "certainty", "result", "reason"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"claim {self.id}: {name} must be text, got {getattr(self, name)!r}")
        if not isinstance(self.expected, str | float | int) or isinstance(self.expected, bool):
            raise ValueError(f"claim {self.id}: expected must be text or a number, got {self.expected!r}")
        folder, _, name = self.id.partition("/")
        if not (folder and name) or "/" in name:
            raise ValueError(f"claim {self.id!r}: an id reads <paper>/<short name>")
        for name in ("paper", "source", "statement", "expected"):
            if not str(getattr(self, name)).strip():
                raise ValueError(f"claim {self.id}: {name} is empty")
        if self.certainty not in CERTAINTIES:
            raise ValueError(
                f"claim {self.id}: certainty must be one of {', '.join(CERTAINTIES)}, got {self.certainty!r}"
            )
        if bool(self.result.strip()) == bool(self.reason.strip()):
            raise ValueError(f"claim {self.id}: exactly one of result and reason must be filled in")


def ledger(path: str | Path = LEDGER) -> dict[str, Row]:
    """Read and check the ledger.

    Args:
        path: a TOML file with `[[claim]]` tables.

    Returns:
        id -> row, in the order of the file.

    Raises:
        UserError: if it cannot be read, repeats an id, or has a row that is not allowed.

    Example:
        >>> all(row.id == id for id, row in ledger().items())
        True
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
        rows = [_row(table) for table in tables]
    except FileNotFoundError:
        raise UserError(f"no ledger of claims at {path}") from None
    except KeyError:
        raise UserError(f"{path.name} has no [[claim]]") from None
    except ValueError as error:
        raise UserError(f"{path.name}: {error}") from None
    found: dict[str, Row] = {}
    for row in rows:
        if row.id in found:
            raise UserError(f"{path.name}: claim {row.id} appears twice")
        found[row.id] = row
    return found


def contradictions(rows: Mapping[str, Row], tested: Mapping[str, Iterable[str]]) -> list[str]:
    """Where the ledger and the result files disagree.

    Args:
        rows: the ledger.
        tested: result id -> ids of the claims that its file tests.

    Returns:
        One line for each disagreement.

    Example:
        >>> row = Row("demo/a", "A paper", "Figure 1", "It is small.", "below 1", "read", "demo/figure", "")
        >>> contradictions({"demo/a": row}, {"demo/figure": []})
        ['claim demo/a names result demo/figure, whose CLAIMS do not contain it']
    """
    tests = {result: list(claims) for result, claims in tested.items()}
    lines = []
    for row in rows.values():
        if row.result and row.result not in tests:
            lines.append(f"claim {row.id} names result {row.result}, which does not exist")
        elif row.result and row.id not in tests[row.result]:
            lines.append(f"claim {row.id} names result {row.result}, whose CLAIMS do not contain it")
    for result, claims in tests.items():
        for claim in claims:
            if claim not in rows:
                lines.append(f"result {result} tests claim {claim}, which is not in the ledger")
            elif rows[claim].result != result:
                other = rows[claim].result or "no result"
                lines.append(f"result {result} tests claim {claim}, for which the ledger names {other}")
    return lines


def _row(table: dict) -> Row:
    """One `[[claim]]` table as a row."""
    known = {field.name for field in fields(Row)}
    if extra := sorted(set(table) - known):
        raise ValueError(f"claim {table.get('id')}: unknown field {extra[0]!r}; there is: {', '.join(sorted(known))}")
    if missing := sorted(known - {"result", "reason"} - set(table)):
        raise ValueError(f"claim {table.get('id')}: field {missing[0]!r} is missing")
    return Row(**table)
