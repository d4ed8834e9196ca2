"""Run folders: `<runs>/<id>/<preset>-<hash8>`, the identity that they are bound to, and reading them back.

config.json   {id, preset, config}, written first         data.json    data set -> SHA-256
env.json      versions, commit, devices                   allowed.json  mismatches that were allowed by name
arrays.npz    series, key "series/field"                  result.json   claims, tables, and the shapes of the series
figure.png, figure.svg                                    seconds.json  spent by the processes that ended orderly
DONE          written last, holds the time: without it the run is not finished

The folder may be on an object store (`gs://bucket/runs`). There every file is one upload and DONE a marker object, but
there is no lock: start one run at a time.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distributed import is_primary
from experiments.errors import UserError, one_line
from experiments.files import (
    as_path,
    atomic_write_bytes,
    atomic_write_text,
    is_object_store,
    make_folder,
    read_json,
    to_plain,
    write_json,
)
from experiments.results import StoredResult

__all__ = ["atomic_write_bytes", "atomic_write_text"]  # what result files and the loop write with

# What says which run a folder is for, and nothing of what the run found.
_BOOKKEEPING = frozenset({".lock", "allowed.json", "config.json", "data.json", "env.json", "seconds.json"})
_ALLOWED: ContextVar[frozenset[str]] = ContextVar("allowed mismatches", default=frozenset())


@dataclass(frozen=True)
class Identity:
    """What a run folder is bound to.

    Args:
        id: of the result.
        preset: size that gave the defaults.
        config: every field of the Config as plain JSON values, seeds among them.

    Example:
        >>> Identity("demo/a", "cpu", {"seeds": [0]}).hash8
        '4b4f94d0'
    """

    id: str
    preset: str
    config: dict[str, Any]

    @property
    def hash8(self) -> str:
        """First eight hexadecimal digits of the SHA-256 of the canonical JSON."""
        canonical = json.dumps(to_plain(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def runs_folder(runs_dir: str | Path | None = None) -> Path:
    """Folder of all run folders: the argument, else LIGHTNET_RUNS, else `runs` in the current folder."""
    return as_path(runs_dir or os.environ.get("LIGHTNET_RUNS") or "runs")


def run_folder(identity: Identity, runs_dir: str | Path | None = None) -> Path:
    """Folder of one run.

    Args:
        identity: of the run.
        runs_dir: as in `runs_folder`.

    Returns:
        `<runs>/<id>/<preset>-<hash8>`.

    Example:
        >>> str(run_folder(Identity("demo/a", "cpu", {"seeds": [0]}), "runs"))
        'runs/demo/a/cpu-4b4f94d0'
    """
    return runs_folder(runs_dir) / identity.id / f"{identity.preset}-{identity.hash8}"


def allowed_mismatches() -> frozenset[str]:
    """Fields in which the run that is being written may differ from what its folder was started with."""
    return _ALLOWED.get()


def is_finished(run_dir: str | Path) -> bool:
    """Whether everything of the run is on disk."""
    return (as_path(run_dir) / "DONE").is_file()


@contextmanager
def writing(run_dir: str | Path, identity: Identity, allow: Collection[str] = ()) -> Iterator[Path]:
    """Hold a run folder for writing: one process at a time (not ensured on an object store), bound to one identity.

    Args:
        run_dir: the folder, made if absent.
        identity: of the run that shall go on there.
        allow: fields that may differ from what the folder was started with ("train.steps", "seeds", "preset", "data").

    Yields:
        The folder; one that was made here is removed again if a mistake ends the run before it writes anything.

    Raises:
        UserError: if another process writes there, or the folder belongs to another run and not every difference is
            allowed.
        OSError: if the folder cannot be made or written.
    """
    run_dir = as_path(run_dir)
    check_identity(run_dir, identity, allow)  # before anything is made, so that a refusal leaves nothing
    folders = [run_dir] if is_object_store(run_dir) else [run_dir, *run_dir.parents]
    new = [path for path in folders if not path.exists()]
    make_folder(run_dir)
    with _lock(run_dir), _removed_after_a_mistake(new), allowing(allow):
        _bind(run_dir, identity, frozenset(allow))
        yield run_dir


@contextmanager
def allowing(fields: Collection[str]) -> Iterator[None]:
    """Let `record_data` and the training loop in this block accept a run folder that differs in these fields.

    Args:
        fields: as in `writing`.
    """
    token = _ALLOWED.set(frozenset(fields))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def replace_result(run_dir: str | Path, identity: Identity) -> None:
    """Make way for a result that was just computed: drop the one that the folder holds, bind the folder to the new one.

    Until here a finished run stays what it was, whatever becomes of an attempt to continue it with other settings.

    Args:
        run_dir: the run folder.
        identity: of the run that was computed.

    Raises:
        OSError: if the folder cannot be written.
    """
    run_dir = as_path(run_dir)
    for name in ("DONE", "result.json"):
        (run_dir / name).unlink(missing_ok=True)
    if read_json(run_dir / "config.json") != to_plain(identity):
        write_json(run_dir / "config.json", identity)


def check_identity(run_dir: str | Path, identity: Identity, allow: Collection[str] = ()) -> list[dict[str, Any]]:
    """Compare a folder's identity with that of the run that shall go on there; an empty folder agrees with all.

    Args:
        run_dir: the folder.
        identity: of the run that shall go on there.
        allow: fields that may differ.

    Returns:
        The differences that were allowed, each `{"field", "was", "now"}`.

    Raises:
        UserError: if it belongs to another result, holds other files, or differs in a field that is not allowed.
    """
    run_dir = as_path(run_dir)
    if not (run_dir / "config.json").exists():
        if run_dir.is_dir() and any(not path.name.startswith(".") for path in run_dir.iterdir()):
            raise UserError(f"{run_dir} holds files but no config.json, so it is not a run folder")
        return []
    stored = read_json(run_dir / "config.json")
    if stored["id"] != identity.id:
        raise UserError(f"{run_dir} is a run of {stored['id']}, not of {identity.id}")
    changes = differences(to_plain(stored["config"]), to_plain(identity.config))
    if stored["preset"] != identity.preset:
        changes.insert(0, {"field": "preset", "was": stored["preset"], "now": identity.preset})
    refused = [change for change in changes if change["field"] not in allow]
    if refused:
        told = "; ".join(f"{c['field']} was {c['was']!r} and is now {c['now']!r}" for c in refused)
        flag = ",".join(change["field"] for change in refused)
        raise UserError(f"{run_dir} was started with another config: {told}; allow it with --allow_mismatch {flag}")
    return changes


def differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """Fields in which two plain configs differ.

    Args:
        was: one config.
        now: the other.
        prefix: dotted name of the part that they are.

    Returns:
        `{"field", "was", "now"}` for each, None where a side lacks the field.

    Example:
        >>> differences({"train": {"steps": 1}}, {"train": {"steps": 2}})
        [{'field': 'train.steps', 'was': 1, 'now': 2}]
    """
    found = []
    for name in dict.fromkeys([*was, *now]):
        old, new = was.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append({"field": f"{prefix}{name}", "was": old, "now": new})
    return found


def record_data(run_dir: str | Path, data: Mapping[str, str]) -> None:
    """Bind a run folder to the data that the run reads; call once with all of its data sets, before training.

    Of several processes the first one writes; the others only compare.

    Args:
        run_dir: the run folder.
        data: data set -> SHA-256 of its content.

    Raises:
        UserError: if the run was started with other data and `--allow_mismatch data` was not given.
        OSError: if the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> record_data(folder, {"digits": "ab"})
        >>> record_data(folder, {"digits": "cd"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        experiments.errors.UserError: ...was started with other data: digits...
    """
    path = as_path(run_dir) / "data.json"
    was = read_json(path) if path.exists() else None
    if was == dict(data):
        return
    if was is not None:
        changes = differences(was, data)
        if "data" not in _ALLOWED.get():
            names = ", ".join(change["field"] for change in changes)
            raise UserError(f"{run_dir} was started with other data: {names}; allow it with --allow_mismatch data")
        if is_primary():
            _record_allowed(path.parent, [{**change, "field": f"data.{change['field']}"} for change in changes])
    if is_primary():
        write_json(path, dict(data))


def write_arrays(run_dir: str | Path, series: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Write every series into `arrays.npz`.

    Args:
        run_dir: the run folder.
        series: series -> field -> array.

    Returns:
        series -> field -> {"shape", "dtype"}, for `result.json`.

    Raises:
        UserError: if a name is empty or contains the separator.
        OSError: if it could not be written.
    """
    for name in (name for group, fields in series.items() for name in (group, *fields)):
        if not name or "/" in name:
            raise UserError(f"names of series and of their fields must be text without '/', got {name!r}")
    arrays = {f"{name}/{field}": np.asarray(a) for name, fields in series.items() for field, a in fields.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic_write_bytes(as_path(run_dir) / "arrays.npz", buffer.getvalue())
    described: dict[str, Any] = {name: {} for name in series}
    for key, array in arrays.items():
        name, _, field = key.partition("/")
        described[name][field] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    return described


def read_arrays(run_dir: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Series -> field -> array of a finished run."""
    series: dict[str, dict[str, np.ndarray]] = {}
    content = io.BytesIO((as_path(run_dir) / "arrays.npz").read_bytes())
    with np.load(content, allow_pickle=False) as stored:
        for key in stored.files:
            name, _, field = key.partition("/")
            series.setdefault(name, {})[field] = stored[key]
    return series


def read_result(folder: str | Path) -> StoredResult:
    """Read a finished run, or a committed result.

    Args:
        folder: one that contains `result.json`.

    Returns:
        The result.

    Raises:
        UserError: if it contains none, or a damaged one.
    """
    folder = as_path(folder)
    path = folder / "result.json"
    stored = read_json(path)
    names = {field.name for field in dataclasses.fields(StoredResult)} - {"seeds", "path"}
    try:
        fields = {name: stored[name] for name in names}
        return StoredResult(**fields, seeds=tuple(stored["seeds"]), path=folder)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: no field {error}") from None


def finished_runs(id: str, preset: str | None = None, runs_dir: str | Path | None = None) -> list[Path]:
    """Folders of the finished runs of a result, the one finished last first, as DONE says: copying changes no order."""
    found = runs_folder(runs_dir).joinpath(id).glob(f"{preset or '*'}-*/DONE")
    return [done.parent for done in sorted(found, key=lambda done: done.read_text(encoding="utf-8"), reverse=True)]


def committed_folder(id: str, preset: str) -> Path | None:
    """Folder of the committed result of a preset, None if there is none."""
    paper, _, name = id.rpartition("/")
    folder = Path(__file__).parent / paper / "results" / name / preset
    return folder if paper and (folder / "result.json").is_file() else None


def mark_done(run_dir: str | Path) -> None:
    """Write `DONE`, after everything else."""
    atomic_write_text(as_path(run_dir) / "DONE", datetime.now(UTC).isoformat(timespec="microseconds") + "\n")


def _bind(run_dir: Path, identity: Identity, allow: frozenset[str]) -> None:
    """Check the folder's identity and write it down, or that other settings begin to work in it, before they do."""
    if changes := check_identity(run_dir, identity, allow):
        _record_allowed(run_dir, changes)
    if not (run_dir / "config.json").exists():
        write_json(run_dir / "config.json", identity)


def _record_allowed(run_dir: Path, changes: list[dict[str, Any]]) -> None:
    """Add to the list of mismatches that this folder has been through."""
    path = run_dir / "allowed.json"
    before = read_json(path) if path.exists() else []
    if new := [change for change in changes if change not in before]:
        write_json(path, before + new)


@contextmanager
def _removed_after_a_mistake(new: Sequence[Path]) -> Iterator[None]:
    """Remove folders that were just made, the run folder first, if a mistake is found before anything is written."""
    try:
        yield
    except Exception as error:
        made = new and new[0].exists()
        if made and one_line(error) is not None and {path.name for path in new[0].iterdir()} <= _BOOKKEEPING:
            with suppress(OSError):  # another run may have begun beside this one; an object store has no folders
                for name in _BOOKKEEPING:
                    (new[0] / name).unlink(missing_ok=True)
                for folder in new:
                    folder.rmdir()
        raise


@contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """Refuse a second writer; the system frees the lock when the process ends, however it ends. Not on a store."""
    if is_object_store(run_dir):
        yield
        return
    with open(run_dir / ".lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{run_dir} is being written by process {file.read().strip() or 'unknown'}") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
