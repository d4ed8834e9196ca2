"""Files that are either whole or absent, and JSON that every reader accepts.

In a folder of this machine that is: write elsewhere, fsync, rename. On an object store an object appears as a whole
when it was uploaded; nothing can be renamed, nothing appended to, and there are no folders to make.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from experiments.errors import UserError

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_STORES = {"gs": "gcs", "s3": "s3", "az": "az"}  # scheme of an address -> what fsspec calls the store


def as_path(path: str | PurePath) -> Path:
    """A path in this machine's folders, or on an object store: the address `gs://bucket/runs` with the same methods.

    Args:
        path: of either kind.

    Returns:
        A `pathlib.Path`, or the `epath.Path` of an address, whose methods have the same names and meanings.

    Raises:
        UserError: if the address is of no known store, the package that reads the store is not installed, or
            `pathlib.Path` has taken a slash out of an address.

    Example:
        >>> as_path("runs/a").parent
        PosixPath('runs')
        >>> as_path("gs:/bucket/runs")
        Traceback (most recent call last):
        ...
        experiments.errors.UserError: gs:/bucket/runs is no address of an object store; write gs://bucket/runs
    """
    scheme, slash, rest = str(path).partition(":/")
    if not slash or not scheme.isalnum():
        return Path(path)
    if not rest.startswith("/"):
        if scheme not in _STORES:
            return Path(path)
        raise UserError(f"{path} is no address of an object store; write {scheme}://{rest}")
    if scheme not in _STORES:
        raise UserError(f"{path} is on no known object store; there is: {', '.join(f'{s}://' for s in _STORES)}")
    return _address(str(path), scheme)


def is_object_store(path: PurePath) -> bool:
    """Whether a path of `as_path` is on an object store: no rename, no append, no lock, no folders.

    Args:
        path: what `as_path` returned, or something joined to it.

    Returns:
        False for a folder of this machine.

    Example:
        >>> is_object_store(as_path("runs/a"))
        False
    """
    return "://" in str(path)


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that a crash, a full disk or a reader sees the old content or the new, never a part.

    Args:
        path: file to write; its folder must exist, on an object store there is none.
        content: everything that it shall contain.

    Raises:
        OSError: if it could not be written; the old file, if any, is untouched and nothing is left beside it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> atomic_write_bytes(folder / "a", b"1")
        >>> [p.name for p in folder.iterdir()], (folder / "a").read_bytes()
        (['a'], b'1')
    """
    path = as_path(path)
    if is_object_store(path):
        path.write_bytes(content)
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(scratch, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails does not say where
        raise
    _sync_folder(path.parent)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of text in UTF-8.

    Args:
        path: file to write; its folder must exist.
        text: everything that it shall contain.

    Raises:
        OSError: if it could not be written.
    """
    atomic_write_bytes(path, text.encode("utf-8"))


def make_folder(path: str | Path) -> Path:
    """Make a folder and those above it, unless they exist; an object store has none to make.

    Args:
        path: of the folder.

    Returns:
        The path.

    Raises:
        UserError: if a file is in the way.
        OSError: if it cannot be made.
    """
    path = as_path(path)
    if is_object_store(path):
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        obstacle = next((part for part in (path, *path.parents) if part.is_file()), path)
        raise UserError(f"{obstacle} is a file, and a folder is needed there") from None
    return path


def replace_folder(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files as a whole: a crash leaves the old files, the new ones, or no folder, never some of each.

    Args:
        path: the folder, on this machine; what else it contains is removed.
        files: name -> content.

    Raises:
        OSError: if it could not be written; the old folder, if any, is untouched and nothing is left beside it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "a"
        >>> replace_folder(folder, {"b": b"1", "c": b"2"})
        >>> sorted(p.name for p in folder.iterdir())
        ['b', 'c']
    """
    path = Path(path)
    make_folder(path.parent)
    scratch, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.{end}") for end in ("tmp", "old"))
    try:
        scratch.mkdir()
        for name, content in files.items():
            atomic_write_bytes(scratch / name, content)
        if path.exists():
            os.replace(path, old)  # a folder cannot be renamed onto one that is not empty
        os.replace(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        if old.exists():
            os.replace(old, path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, atomically.

    Args:
        path: file to write.
        value: see `to_plain` for what may be in it.

    Raises:
        OSError: if it could not be written.
        TypeError: if something in it has no JSON form.
    """
    atomic_write_text(path, _laid_out(to_plain(value)) + "\n")


def read_json(path: str | Path) -> Any:
    """Read what `write_json` wrote; numbers that are not finite come back as floats.

    Args:
        path: file to read.

    Returns:
        The value, with lists for tuples.

    Raises:
        UserError: if the file is absent or is not JSON.
    """
    try:
        return from_plain(json.loads(as_path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def to_plain(value: Any) -> Any:
    """A value as dicts, lists, strings, numbers, booleans and None, which is what JSON can hold.

    Args:
        value: dataclasses, mappings with string keys, sequences, numpy arrays and scalars, paths and plain values.

    Returns:
        The same with plain types; NaN and the infinities become the strings "NaN", "Infinity" and "-Infinity".

    Raises:
        TypeError: if something has no JSON form.

    Example:
        >>> to_plain({"a": (1, np.float32(0.5)), "b": math.inf})
        {'a': [1, 0.5], 'b': 'Infinity'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_string_key(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "__array__"):
        return to_plain(np.asarray(value))
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def from_plain(value: Any) -> Any:
    """Undo what `to_plain` did to numbers that are not finite.

    Args:
        value: what JSON held.

    Returns:
        The same with NaN and infinities for their names.

    Example:
        >>> from_plain({"a": [1, "-Infinity"]})
        {'a': [1, -inf]}
    """
    if isinstance(value, dict):
        return {key: from_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON with one line per field, and a list of plain values on one line: short to read and to compare in a diff."""
    if isinstance(value, dict) and value:
        inner = indent + " "
        rows = [
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {_laid_out(item, inner)}" for key, item in value.items()
        ]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inner = indent + " "
        return "[\n" + ",\n".join(inner + _laid_out(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _string_key(key: Any) -> str:
    """Refuse keys that JSON would silently turn into strings."""
    if not isinstance(key, str):
        raise TypeError(f"keys must be strings, got {key!r}")
    return key


def _address(path: str, scheme: str) -> Path:
    """An address as a path; the libraries for it are imported only here."""
    import fsspec
    from etils import epath

    # Other processes, and Orbax without fsspec, write there too: a remembered listing would hide it.
    fsspec.config.conf.setdefault(_STORES[scheme], {}).setdefault("use_listings_cache", False)
    try:
        fsspec.get_filesystem_class(_STORES[scheme])
    except (ImportError, ValueError) as error:
        raise UserError(f"{path} cannot be opened: {error}") from None
    return epath.Path(path)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; file systems that cannot sync a folder are left as they are."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
