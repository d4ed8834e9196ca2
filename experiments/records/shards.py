"""One shard: an ArrayRecord file that is either whole or absent."""

import hashlib
import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.files import as_path, atomic_write_bytes, is_object_store, read_json, write_json
from experiments.records.encoding import Record, encode

# Every record by itself, which is what random access needs; one thread, because several processes write.
_OPTIONS = "group_size:1,zstd:1,max_parallelism:1"
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Shard:
    """What is known of a shard that was written.

    Attributes:
        file: its name.
        records: how many.
        bytes: its size.
        sha256: of its bytes.
        counts: sums over its records, such as "tokens".
    """

    file: str
    records: int
    bytes: int
    sha256: str
    counts: Mapping[str, int]


def shard_name(name: str, number: int, shards: int) -> str:
    """File name of a shard.

    Args:
        name: of the data.
        number: of the shard, from 0.
        shards: how many there are.

    Returns:
        The name.

    Example:
        >>> shard_name("lm1b", 3, 16)
        'lm1b-00003-of-00016.array_record'
    """
    return f"{name}-{number:05d}-of-{shards:05d}.array_record"


def write_shard(
    folder: str | Path, file: str, records: Iterable[Record], count: Callable[[Record], Mapping[str, int]]
) -> Shard:
    """Write a shard under another name, then rename it; its description is written after it.

    Args:
        folder: that exists, or an address. There the shard is made on this machine's disk and uploaded as a whole, from
            memory, so that shards should be some hundred megabytes.
        file: name of the shard.
        records: what it shall hold.
        count: numbers to sum over the records.

    Returns:
        Its description.

    Raises:
        OSError: it could not be written; nothing of it is left.
    """
    folder = as_path(folder)
    _remove_scratch(folder, file)
    if is_object_store(folder):
        with tempfile.TemporaryDirectory(prefix="lightnet-lab-") as local:
            shard = _write(Path(local) / file, file, records, count)
            atomic_write_bytes(folder / file, (Path(local) / file).read_bytes())
    else:
        scratch = folder / f".{file}.{secrets.token_hex(4)}.tmp"
        try:
            shard = _write(scratch, file, records, count)
            with open(scratch, "rb") as written:
                os.fsync(written.fileno())
            os.replace(scratch, folder / file)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    write_json(_description(folder, file), shard)
    return shard


def written_shard(folder: str | Path, file: str) -> Shard | None:
    """The description of a shard, if all of it is there.

    Args:
        folder: where it would be.
        file: its name.

    Returns:
        The description; None if the shard has to be written, also where its size is another.

    Raises:
        UserError: the description is damaged.
    """
    folder = as_path(folder)
    described = _description(folder, file)
    if not described.is_file() or not (folder / file).is_file():
        return None
    shard = read_shard(read_json(described), described)
    return shard if file_size(folder / file) == shard.bytes else None


def file_size(path: Path) -> int:
    """Bytes of a file, on this machine or in a bucket."""
    stat: Any = path.stat()
    return int(stat.length if is_object_store(path) else stat.st_size)  # `epath` has a name of its own


def read_shard(plain: Any, where: str | Path) -> Shard:
    """A description from what JSON held.

    Args:
        plain: what it held.
        where: file, for the message.

    Returns:
        The description.

    Raises:
        UserError: it is none.
    """
    try:
        return Shard(**plain)
    except TypeError:
        raise UserError(f"{where} is damaged: it describes no shard") from None


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, on this machine or in a bucket.

    Args:
        path: of the file.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with as_path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _write(path: Path, file: str, records: Iterable[Record], count: Callable[[Record], Mapping[str, int]]) -> Shard:
    from array_record.python.array_record_module import ArrayRecordWriter

    number, counts = 0, Counter[str]()
    writer = ArrayRecordWriter(str(path), _OPTIONS)
    try:
        for record in records:
            writer.write(encode(record))
            counts.update(count(record))
            number += 1
    finally:
        writer.close()
    return Shard(file, number, path.stat().st_size, file_sha256(path), dict(sorted(counts.items())))


def _description(folder: Path, file: str) -> Path:
    return folder / f"{file.removesuffix('.array_record')}.json"


def _remove_scratch(folder: Path, file: str) -> None:
    """Remove what a writer that was killed left of this shard."""
    if not is_object_store(folder):
        for path in folder.glob(f".{file}.*.tmp"):
            path.unlink(missing_ok=True)
