"""Which stored result speaks for a result file: never one whose settings or thresholds are not those of the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments import runs
from experiments.errors import UserError
from experiments.files import to_plain
from experiments.registry import ResultFile, discover, unknown
from experiments.results import StoredResult

# Largest first; smoke tests no claim.
CONCLUSIVE = ("paper", "gpu", "cpu")


def evidence(result: ResultFile, runs_dir: str | Path | None = None) -> StoredResult | None:
    """The stored result whose verdicts count: of the largest preset, and of that the newest.

    Args:
        result: the result file.
        runs_dir: folder of run folders.

    Returns:
        The stored result, None if the result was never run at a conclusive preset.

    Raises:
        UserError: if a stored result is damaged.
    """
    found = (evidence_at(result, preset, runs_dir) for preset in CONCLUSIVE if preset in result.presets)
    return next((stored for stored in found if stored is not None), None)


def evidence_at(result: ResultFile, preset: str, runs_dir: str | Path | None = None) -> StoredResult | None:
    """The newest finished run of one preset that counts, else the committed result if that does.

    Args:
        result: the result file.
        preset: one of its presets.
        runs_dir: folder of run folders.

    Returns:
        The stored result, None if there is none.

    Raises:
        UserError: if a stored result is damaged.
    """
    folders = [*runs.finished_runs(result.id, preset, runs_dir), runs.committed_folder(result.id, preset)]
    found = (runs.read_result(folder) for folder in folders if folder is not None)
    return next((stored for stored in found if counts(result, stored)), None)


def counts(result: ResultFile, stored: StoredResult) -> bool:
    """Whether a run speaks for a result file as it is now.

    Args:
        result: the result file.
        stored: one of its runs.

    Returns:
        True if the run used its preset's settings, with at least as many seeds, and was judged by the same claims.
    """
    preset = result.presets.get(stored.preset)
    if preset is None or not same_claims(result, stored):
        return False
    changed = {change["field"] for change in runs.differences(to_plain(stored.config), to_plain(preset))}
    return changed <= {"seeds"} and len(stored.seeds) >= len(preset.seeds)


def same_claims(result: ResultFile, stored: StoredResult) -> bool:
    """Whether a run was judged by the tests that the result file states now; a threshold is stated before the run.

    Args:
        result: the result file.
        stored: one of its runs.

    Returns:
        True if every test and threshold is the same.
    """
    fields = ("test", "expected", "tolerance", "kind", "deterministic")
    now = {claim.id: [getattr(claim, field) for field in fields] for claim in result.claims}
    return now == {record["claim"]: [record[field] for field in fields] for record in stored.claims}


def find(word: str, preset: str | None = None, runs_dir: str | Path | None = None) -> StoredResult:
    """The run that a word of the command line means.

    Args:
        word: a run folder, or the id of a result: then its newest finished run, else the committed one.
        preset: only runs of that preset.
        runs_dir: folder of run folders.

    Returns:
        The stored result.

    Raises:
        UserError: if there is no such run, or it is not finished.
    """
    folder = Path(word)
    if (folder / "config.json").is_file() and not runs.is_finished(folder):
        raise UserError(f"the run {folder} is not finished; the command that started it continues it")
    if (folder / "result.json").is_file():
        return runs.read_result(folder)
    stored = next(_stored(word, preset, runs_dir), None)
    if stored is not None:
        return stored
    of_preset = f" at preset {preset}" if preset else ""
    if word in discover():
        raise UserError(f"no finished run of {word}{of_preset}; make one: python -m experiments run {word}")
    if folder.exists():
        raise UserError(f"{folder} is not a run folder: it has no result.json")
    raise UserError(unknown("run folder or result", word, [*discover(), *_outside_ids(runs_dir)]))


def _stored(id: str, preset: str | None, runs_dir: str | Path | None) -> Iterator[StoredResult]:
    """Finished runs of a result, newest first, then committed ones."""
    for folder in runs.finished_runs(id, preset, runs_dir):
        yield runs.read_result(folder)
    for name in (preset,) if preset else CONCLUSIVE:
        if committed := runs.committed_folder(id, name):
            yield runs.read_result(committed)


def _outside_ids(runs_dir: str | Path | None) -> list[str]:
    """Ids of outside result files that have runs."""
    return sorted({done.parent.parent.name for done in runs.runs_folder(runs_dir).glob("*/*/DONE")})
