"""`compare RUN RUN`: two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.evidence import find
from experiments.files import to_plain
from experiments.plain_text import cell, interval, measurement, text_table
from experiments.results import StoredResult
from experiments.runs import differences
from experiments.statistics import paired_differences, summarize


@dataclass(frozen=True)
class Flags:
    """Two runs side by side: config differences, claims, and differences paired by seed.

    RUN is a run folder or the id of a result.
    """

    runs_dir: RunsDir = None
    """folder of run folders"""


def main(arguments: Sequence[str]) -> int:
    """Print the comparison.

    Args:
        arguments: words after `compare`.

    Returns:
        0.
    """
    flags, words = parse(Flags(), f"{PROGRAM} compare RUN RUN", arguments)
    first, second = (find(word, runs_dir=flags.runs_dir) for word in exactly(words, "the first RUN", "the second RUN"))
    print(
        f"A: {first.id}, preset {first.preset}, {first.path}\nB: {second.id}, preset {second.preset}, {second.path}\n"
    )
    print(_configs(first, second))
    print(f"\n{_claims(first, second)}")
    return 0


def paired(first: StoredResult, second: StoredResult, claim: str) -> list[float]:
    """Differences of one claim's measurements, over the seeds that both runs have.

    Args:
        first: a run.
        second: another.
        claim: id of a claim of both.

    Returns:
        first - second, one value per common seed in the first run's order; empty where values belong to no seed.
    """
    one, other = (_by_seed(stored, claim) for stored in (first, second))
    common = [seed for seed in one if seed in other]
    return paired_differences([one[seed] for seed in common], [other[seed] for seed in common])


def _by_seed(stored: StoredResult, claim: str) -> dict[int | str, float]:
    """Seed -> value; the one value of a deterministic claim pairs with that of another run."""
    record = stored.claim(claim)
    keys = ["exact"] if record["deterministic"] else list(stored.seeds)
    return dict(zip(keys, record["values"], strict=True)) if record["values"] else {}


def _configs(first: StoredResult, second: StoredResult) -> str:
    """Fields in which the two configs differ."""
    changes: list[dict[str, Any]] = differences(to_plain(first.config), to_plain(second.config))
    if first.preset != second.preset:
        changes.insert(0, {"field": "preset", "was": first.preset, "now": second.preset})
    rows = [[change["field"], change["was"], change["now"]] for change in changes]
    return text_table(["config", "A", "B"], rows) if rows else "equal configs"


def _claims(first: StoredResult, second: StoredResult) -> str:
    """Claims of both runs, A beside B."""
    sides = [{record["claim"]: record for record in stored.claims} for stored in (first, second)]
    rows = []
    for claim in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = (side.get(claim) for side in sides)
        difference = "-"
        if a and b:
            summary = summarize(paired(first, second, claim), a["deterministic"])
            difference = interval(summary.mean, summary.ci95)
            difference += f" (n {summary.n})" if summary.n else ""
        rows.append([claim, _side(a), _side(b), difference])
    return text_table(["claim", "A", "B", "A - B, paired by seed"], rows) if rows else "no claims"


def _side(record: dict[str, Any] | None) -> str:
    """Measurement and verdict of one side."""
    if record is None:
        return cell(None)
    return f"{measurement(record)}: {record['verdict']}"
