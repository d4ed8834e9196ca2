"""Random access to the records of a folder. Nothing is read that does not have the SHA-256 of the manifest.

ArrayRecord files are read from this machine's disk. Of a folder in a bucket each shard is fetched as a whole when its
first record is asked for, checked, and kept in ~/.cache/lightnet-lab/records (XDG_CACHE_HOME stands for ~/.cache;
LIGHTNET_RECORDS names another folder); remove it at any time.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from experiments.compilation_cache import default_folder
from experiments.errors import UserError
from experiments.files import as_path, is_object_store, make_folder
from experiments.records.encoding import decode
from experiments.records.manifest import Manifest, read_manifest
from experiments.records.shards import Shard, file_sha256, file_size

CACHE = "LIGHTNET_RECORDS"
_CHUNK_BYTES = 2**20


class Records:
    """The records of some shards of a folder, as Grain expects of a source: `len`, an index, and copies for workers.

    Attributes:
        manifest: of the folder.
        shards: numbers of the shards that are read, in this order.
    """

    def __init__(self, folder: str | Path, shards: Sequence[int] | None = None, *, check: bool = True) -> None:
        """Look at the manifest and the shards.

        Args:
            folder: on this machine or in a bucket.
            shards: numbers; None takes all.
            check: compute the SHA-256 of every shard before anything is read. What comes from a bucket is checked when
                it is fetched in any case, and sizes always are.

        Raises:
            UserError: the folder is not whole, or a shard is not the one that the manifest names.
        """
        self.folder = as_path(folder)
        self.manifest: Manifest = read_manifest(folder)
        self.shards = tuple(range(len(self.manifest.shards)) if shards is None else shards)
        if not self.shards or not set(self.shards) <= set(range(len(self.manifest.shards))):
            raise UserError(f"{folder}: got the shards {self.shards}, expected some of {len(self.manifest.shards)}")
        self._ends = list(accumulate(self._shard(place).records for place in range(len(self.shards))))
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._remote = is_object_store(self.folder)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            wrong = pool.map(lambda place: self._objection(place, check), range(len(self.shards)))
            if found := next(filter(None, wrong), None):
                raise UserError(found)

    def __len__(self) -> int:
        """Number of records."""
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """One record."""
        index = index.__index__()
        if not 0 <= index < len(self):
            raise IndexError(f"index: got {index}, expected 0 to {len(self) - 1}")
        place = bisect_right(self._ends, index)
        number = index - (self._ends[place - 1] if place else 0)
        try:
            return decode(self._reader(place)[number])
        except (RuntimeError, ValueError) as error:  # of the library, or of the encoding
            reason = str(error).splitlines()[0][:120]
            raise UserError(f"{self._path(place)} is damaged at record {number} ({reason})") from None

    def only(self, shards: Sequence[int]) -> Records:
        """The records of some of these shards, which are not checked again.

        Args:
            shards: their numbers in the folder.

        Returns:
            A source of them.
        """
        return Records(self.folder, shards, check=False)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker gets: the readers and the lock are its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a worker got."""
        self.__dict__.update(state, _readers={}, _lock=threading.Lock())

    def __repr__(self) -> str:
        """For Grain's messages."""
        return f"Records({str(self.folder)!r}, shards={self.shards})"

    def _shard(self, place: int) -> Shard:
        return self.manifest.shards[self.shards[place]]

    def _path(self, place: int) -> Path:
        return self.folder / self._shard(place).file

    def _objection(self, place: int, check: bool) -> str | None:
        """Why a shard is not the one of the manifest."""
        path, shard = self._path(place), self._shard(place)
        if not path.is_file():
            return f"{path} does not exist, and the manifest names it; `data prepare` writes it again"
        if (size := file_size(path)) != shard.bytes:
            return f"{path} has {size} bytes, and the manifest says {shard.bytes}"
        if check and not self._remote and file_sha256(path) != shard.sha256:
            return f"{path} is damaged: it does not have the SHA-256 of the manifest"
        return None

    def _reader(self, place: int) -> Any:
        """Reader of a shard, opened once; a shard of a bucket is fetched first."""
        if (reader := self._readers.get(place)) is None:
            with self._lock:
                if (reader := self._readers.get(place)) is None:
                    reader = self._readers[place] = _opened(self._local(place), self._shard(place))
        return reader

    def _local(self, place: int) -> Path:
        path, shard = self._path(place), self._shard(place)
        return fetched(path, shard) if self._remote else path


def cache_folder() -> Path:
    """Where shards of buckets are kept."""
    given = os.environ.get(CACHE)
    return Path(given) if given else default_folder(os.environ).parents[1] / "records"


def fetched(path: Path, shard: Shard) -> Path:
    """A shard of a bucket on this machine's disk.

    Args:
        path: its address.
        shard: what the manifest says of it.

    Returns:
        Path in the cache, named by the SHA-256, which was checked when it was fetched.

    Raises:
        UserError: what is in the bucket is another.
    """
    local = make_folder(cache_folder()) / f"{shard.sha256}.array_record"
    if local.is_file() and local.stat().st_size == shard.bytes:
        return local
    scratch = local.with_name(f".{local.name}.{secrets.token_hex(4)}.tmp")
    try:
        with path.open("rb") as source, open(scratch, "xb") as target:
            digest = _copy(source.read, target.write)
        if digest != shard.sha256:
            raise UserError(f"{path} is damaged: it does not have the SHA-256 of the manifest")
        os.replace(scratch, local)
    finally:
        scratch.unlink(missing_ok=True)
    return local


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], Any]) -> str:
    digest = hashlib.sha256()
    while chunk := read(_CHUNK_BYTES):
        digest.update(chunk)
        write(chunk)
    return digest.hexdigest()


def _opened(path: Path, shard: Shard) -> Any:
    import grain

    # With the range in the name the file is not opened to count its records.
    return grain.sources.ArrayRecordDataSource(f"{path}[0:{shard.records}]")
