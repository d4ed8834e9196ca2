"""A list of a checkpoint's files with their SHA-256, which tells whether it is still what was saved."""

import errno
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

MANIFEST = "manifest.sha256.json"

_CHUNK_BYTES = 2**20
_THREADS = 4
# Orbax writes these two at the commit itself, after the manifest; nothing that is restored stands in them.
_COMMIT_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def write_manifest(folder: epath.Path) -> None:
    """Write the SHA-256 and the size of each file below `folder` into the file `MANIFEST` in it.

    Args:
        folder: a checkpoint whose files are all written.

    Raises:
        OSError: a file cannot be read, or the manifest not be written.

    Example:
        >>> import tempfile
        >>> folder = epath.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_text("1")
        >>> write_manifest(folder)
        >>> damage(folder)
        >>> _ = (folder / "a").write_text("2")
        >>> damage(folder)
        'a: bytes differ'
    """
    names = sorted(_names(folder))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _digest(folder / name), names)
        files = dict(zip(names, found, strict=True))
    (folder / MANIFEST).write_text(json.dumps({"files": files}, separators=(",", ":")))


def damage(folder: epath.Path) -> str | None:
    """What differs from the manifest in `folder`, or None.

    Args:
        folder: a committed checkpoint.

    Returns:
        The first damaged file and what is wrong with it, in one line.

    Raises:
        OSError: a file cannot be read for a reason outside the checkpoint: no permission, no network.
    """
    try:
        files = _listed(folder)
        present = set(_names(folder))
    except _GONE:
        return f"{MANIFEST}: missing"
    if files is None:
        return f"{MANIFEST}: not readable"
    for name in sorted(present - set(files)):
        return f"{name}: not in the manifest"
    with ThreadPoolExecutor(_THREADS) as pool:
        wrong = pool.map(lambda name: _difference(folder / name, files[name]), sorted(files))
        return next((f"{name}: {what}" for name, what in zip(sorted(files), wrong, strict=True) if what), None)


def copy_files(source: epath.Path, target: epath.Path) -> None:
    """Copy all files below a folder that a manifest could list, where nothing can be renamed.

    Args:
        source: a checkpoint.
        target: where to.
    """
    for name in _names(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).copy(target / name, overwrite=True)


def _listed(folder: epath.Path) -> dict[str, Any] | None:
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return files if isinstance(files, dict) else None


def _names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Paths of the files below `folder`, relative to it; at its top without those that a manifest cannot hold."""
    for path in (folder / prefix).iterdir():
        name = prefix + path.name
        if path.is_dir():
            yield from _names(folder, f"{name}/")
        elif name not in (MANIFEST, *_COMMIT_FILES):
            yield name


def _digest(path: epath.Path) -> dict[str, Any]:
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
    return {"sha256": sha256.hexdigest(), "size": size}


def _difference(path: epath.Path, expected: Any) -> str | None:
    try:
        found = _digest(path)
    except _GONE:
        return "missing"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "not readable"
    if found == expected:
        return None
    size = expected.get("size") if isinstance(expected, dict) else None
    return "bytes differ" if found["size"] == size else f"{found['size']} bytes, {size} were saved"
