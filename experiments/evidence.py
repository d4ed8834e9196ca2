"""Which stored result speaks for a result file: never one whose settings or thresholds are not those of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import runs
from experiments.errors import UserError
from experiments.files import as_path, to_plain
from experiments.registry import ResultFile, discover, load_id, unknown
from experiments.results import StoredResult

# Largest first; smoke tests no claim.
CONCLUSIVE = ("paper", "gpu", "cpu")
_OF_A_TEST = ("test", "expected", "tolerance", "kind", "deterministic")


def evidence(result: ResultFile, runs_dir: str | Path | None = None) -> list[StoredResult]:
    """The stored results whose verdicts count, of which `speaker` takes one for each claim.

    Args:
        result: the result file.
        runs_dir: folder of run folders.

    Returns:
        One for each conclusive preset at which the result was run, the largest preset first.

    Raises:
        UserError: if a stored result is damaged.
    """
    found = (evidence_at(result, preset, runs_dir) for preset in CONCLUSIVE)
    return [stored for stored in found if stored is not None]


def speaker(claim: str, found: Sequence[StoredResult]) -> StoredResult | None:
    """The stored result that speaks for a claim: a larger preset that did not measure it hides no smaller one that did.

    Args:
        claim: id of the claim.
        found: what `evidence` returned.

    Returns:
        The first in which the claim has a verdict, None if there is none.
    """
    tested = (stored for stored in found for record in stored.claims if record["claim"] == claim and record["n"])
    return next(tested, None)


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
    return next((stored for stored in _stored(result.id, preset, runs_dir) if not objection(result, stored)), None)


def objection(result: ResultFile, stored: StoredResult) -> str:
    """Why a run does not speak for a result file as it is now.

    A run speaks for it with the settings of its preset, from its first step on, if the file still states every claim
    that the run was judged by; of a claim that was added later it says nothing. It may have more seeds than the preset,
    but none of the preset's may be missing, so that nobody can choose lucky ones.

    Args:
        result: the result file.
        stored: one of its runs.

    Returns:
        The reason, empty if the run counts.
    """
    preset = result.presets.get(stored.preset)
    if preset is None:
        return f"the result has no preset {stored.preset}"
    if not _still_claimed(result, stored):
        return "the claims were changed after the run"
    if stored.allowed:
        return f"was continued with other settings: {', '.join(change['field'] for change in stored.allowed)}"
    changed = [change["field"] for change in runs.differences(to_plain(stored.config), to_plain(preset))]
    if settings := [field for field in changed if field != "seeds"]:
        return f"not the settings of the preset {stored.preset}: {', '.join(settings)}"
    missing = [str(seed) for seed in preset.seeds if seed not in stored.seeds]
    return f"seeds of the preset {stored.preset} are missing: {', '.join(missing)}" if missing else ""


def same_claims(result: ResultFile, stored: StoredResult) -> bool:
    """Whether a run was judged by the tests that the result file states now; a threshold is stated before the run.

    Args:
        result: the result file.
        stored: one of its runs.

    Returns:
        True if every test and threshold is the same.
    """
    return _tests(result) == _judged(stored)


def _still_claimed(result: ResultFile, stored: StoredResult) -> bool:
    """Whether the file states all that a run was judged by; a claim that did not hold cannot be dropped or renamed."""
    return _judged(stored).items() <= _tests(result).items()


def _tests(result: ResultFile) -> dict[str, tuple]:
    """Claim -> its test and threshold, as the result file states them now."""
    return {claim.id: tuple(getattr(claim, field) for field in _OF_A_TEST) for claim in result.claims}


def _judged(stored: StoredResult) -> dict[str, tuple]:
    """Claim -> its test and threshold, as a run was judged by them."""
    return {record["claim"]: tuple(record[field] for field in _OF_A_TEST) for record in stored.claims}


def find(word: str, preset: str | None = None, runs_dir: str | Path | None = None) -> StoredResult:
    """The run that a word of the command line means.

    Args:
        word: a run folder, or the id of a result: then what `chosen` returns.
        preset: only runs of that preset.
        runs_dir: folder of run folders.

    Returns:
        The stored result.

    Raises:
        UserError: if there is no such run, or it is not finished.
    """
    folder = as_path(word)
    if (folder / "config.json").is_file() and not runs.is_finished(folder):
        raise UserError(f"the run {folder} is not finished; the command that started it continues it")
    if (folder / "result.json").is_file():
        return runs.read_result(folder)
    stored = chosen(word, preset, runs_dir)
    if stored is not None:
        return stored
    of_preset = f" at preset {preset}" if preset else ""
    if word in discover():
        raise UserError(f"no finished run of {word}{of_preset}; make one: python -m experiments run {word}")
    if folder.exists():
        raise UserError(f"{folder} is not a run folder: it has no result.json")
    raise UserError(unknown("run folder or result", word, [*discover(), *outside_ids(runs_dir)]))


def chosen(id: str, preset: str | None = None, runs_dir: str | Path | None = None) -> StoredResult | None:
    """The stored result that an id stands for, in every command and in `experiments.results.load`.

    Args:
        id: `<paper>/<name>`, or the name of an outside result file.
        preset: only runs of that preset; without it the largest conclusive one at which a run counts.
        runs_dir: folder of run folders.

    Returns:
        The newest run that counts; where none does, and for an outside file, which cannot be found to ask it, the
        newest finished run, else the committed result; None if there is none at all.

    Raises:
        UserError: if the result file cannot be imported, or a stored result is damaged.
    """
    if id in discover():
        result = load_id(id)
        for name in (preset,) if preset else CONCLUSIVE:
            if (stored := evidence_at(result, name, runs_dir)) is not None:
                return stored
    return next(_stored(id, preset, runs_dir), None)


def _stored(id: str, preset: str | None, runs_dir: str | Path | None) -> Iterator[StoredResult]:
    """Finished runs of a result, newest first, then committed ones."""
    for folder in runs.finished_runs(id, preset, runs_dir):
        yield runs.read_result(folder)
    for name in (preset,) if preset else CONCLUSIVE:
        if committed := runs.committed_folder(id, name):
            yield runs.read_result(committed)


def outside_ids(runs_dir: str | Path | None = None) -> list[str]:
    """Ids of the result files outside the package that have finished runs; of each, `chosen` gives the newest."""
    return sorted({done.parent.parent.name for done in runs.runs_folder(runs_dir).glob("*/*/DONE")})
