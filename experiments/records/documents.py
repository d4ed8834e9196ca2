"""Documents that can be cut into parts: those of part k of n are found without reading the others.

standard_library, documentation     what Python brings along, see `experiments.sources.text`
tfds:NAME                           a data set of TensorFlow Datasets, an example per document; NAME may be a folder
wikitext103:FOLDER                  WikiText-103, a document per article, see `experiments.sources.wikitext`
PATH                                text files: a file, a folder with .txt, .raw, .tokens and .jsonl, or a pattern
                                    with *; on this machine or in a bucket
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from experiments.errors import UserError
from experiments.files import as_path
from experiments.records.shards import file_sha256, file_size
from experiments.registry import unknown

EMBEDDED = ("standard_library", "documentation")
Unit = Literal["file", "line"]
_SUFFIXES = {".txt", ".raw", ".tokens", ".jsonl"}
_PROBES = 64


class Documents(Protocol):
    """What is tokenised; picklable."""

    @property
    def name(self) -> str:
        """What it is, as the manifest says it."""

    @property
    def sha256(self) -> str:
        """Of the text."""

    def part(self, number: int, parts: int) -> Iterator[str]:
        """Documents of one of `parts` disjoint parts, in order; together they are all documents."""


def find_documents(source: str, *, split: str = "train", field: str = "text", unit: Unit = "file") -> Documents:
    """The documents that a word of the command line names.

    Args:
        source: see above.
        split: of a data set that has several.
        field: of an example of TFDS, or of a line of JSON, that holds the text.
        unit: what is a document in text files; of .jsonl always a line.

    Returns:
        The documents.

    Raises:
        UserError: there is no such source, or no text in it.
    """
    kind, colon, rest = source.partition(":")
    if source in EMBEDDED:
        return EmbeddedText(source)
    if colon and kind == "tfds":
        return TFDSText(rest, split, field)
    if colon and kind == "wikitext103":
        return WikiText(rest, split)
    path = as_path(source)
    if any(sign in path.name for sign in "*?[") or path.exists():
        return TextFiles(source, _files(path), unit, field)
    raise UserError(f"{unknown('source', source, [*EMBEDDED, 'tfds:NAME', 'wikitext103:FOLDER'])}, and no such path")


def bounds(total: int, number: int, parts: int) -> tuple[int, int]:
    """Number of the first member of a part of almost equal size, and of the first behind it.

    Example:
        >>> [bounds(10, number, 3) for number in range(3)]
        [(0, 3), (3, 6), (6, 10)]
    """
    return total * number // parts, total * (number + 1) // parts


class _OpenedAgain:
    """A dataclass of which another process gets the fields, and not what was read for them."""

    def __getstate__(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class EmbeddedText(_OpenedAgain):
    """A corpus of `experiments.sources.text`."""

    name: str

    @cached_property
    def _corpus(self) -> Any:
        from experiments.sources import text

        return getattr(text, self.name)()

    @property
    def sha256(self) -> str:
        """Of the corpus."""
        return self._corpus.sha256

    def part(self, number: int, parts: int) -> Iterator[str]:
        """See `Documents`."""
        first, end = bounds(len(self._corpus.documents), number, parts)
        yield from self._corpus.documents[first:end]


@dataclass(frozen=True)
class WikiText(_OpenedAgain):
    """Articles of one part of WikiText-103, which a process holds in memory as a whole (0.5 GB)."""

    folder: str
    split: str

    @cached_property
    def _corpus(self) -> Any:
        from experiments.sources.wikitext import WORDS, read_wikitext

        if self.split not in WORDS:
            raise UserError(unknown("split", self.split, WORDS))
        return read_wikitext(self.folder)[self.split]

    @property
    def name(self) -> str:
        """See `Documents`."""
        return f"wikitext103:{self.split}"

    @property
    def sha256(self) -> str:
        """Of the corpus."""
        return self._corpus.sha256

    def part(self, number: int, parts: int) -> Iterator[str]:
        """See `Documents`."""
        first, end = bounds(len(self._corpus.documents), number, parts)
        yield from self._corpus.documents[first:end]


@dataclass(frozen=True)
class TFDSText(_OpenedAgain):
    """A field of the examples of a prepared data set, read at random without TensorFlow.

    Its hash is of the number of examples and of 64 of them spread over all: the whole may be hundreds of gigabytes.
    """

    data_set: str
    split: str
    field: str

    @cached_property
    def _source(self) -> Any:
        import tensorflow_datasets as tfds

        from experiments.training.data import tfds_source

        if not (Path(self.data_set) / "dataset_info.json").is_file():
            return tfds_source(self.data_set, self.split, embedded=" or ".join(EMBEDDED))
        try:
            return tfds.builder_from_directory(self.data_set).as_data_source(self.split)
        except Exception as error:  # TFDS raises whatever its registry, its formats or the file system raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise UserError(f"{self.data_set} ({self.split}) cannot be read ({reason})") from None

    @property
    def name(self) -> str:
        """See `Documents`."""
        return f"tfds:{self.data_set}:{self.split}"

    @cached_property
    def sha256(self) -> str:
        """Of the number of examples and 64 of them."""
        count = len(self._source)
        digest = hashlib.sha256(f"{count}".encode())
        for index in np.unique(np.linspace(0, count - 1, min(count, _PROBES)).astype(int)):
            text = self._text(int(index)).encode()
            digest.update(len(text).to_bytes(8, "little") + text)
        return digest.hexdigest()

    def part(self, number: int, parts: int) -> Iterator[str]:
        """See `Documents`."""
        for index in range(*bounds(len(self._source), number, parts)):
            yield self._text(index)

    def _text(self, index: int) -> str:
        example = self._source[index]
        value = example.get(self.field) if isinstance(example, dict) else None
        if not isinstance(value, bytes | str):
            fields = ", ".join(example) if isinstance(example, dict) else type(example).__name__
            raise UserError(f"{self.name}: no text in the field {self.field!r}; an example has: {fields}")
        return value if isinstance(value, str) else _decoded(value, self.name)


@dataclass(frozen=True)
class TextFiles(_OpenedAgain):
    """UTF-8 files. A part is a range of bytes of all of them in a row, and has the documents that begin in it."""

    source: str
    files: tuple[tuple[str, int], ...]
    unit: Unit
    field: str

    @property
    def name(self) -> str:
        """See `Documents`."""
        return f"{as_path(self.source).name} ({len(self.files)} files, by {self.unit})"

    @cached_property
    def sha256(self) -> str:
        """Of the files, in order of their paths; not of the paths."""
        digest = hashlib.sha256()
        for path, _ in self.files:
            digest.update(bytes.fromhex(file_sha256(path)))
        return digest.hexdigest()

    def part(self, number: int, parts: int) -> Iterator[str]:
        """See `Documents`."""
        first, end = bounds(sum(size for _, size in self.files), number, parts)
        start = 0
        for path, size in self.files:
            if start < end and start + size > first:
                yield from self._documents(path, first - start, end - start)
            start += size

    def _documents(self, path: str, first: int, end: int) -> Iterator[str]:
        """Documents of a file that begin at one of its bytes from `first` to `end`."""
        if self.unit == "file" and not path.endswith(".jsonl"):
            if first <= 0:
                yield _decoded(as_path(path).read_bytes(), path)
            return
        with as_path(path).open("rb") as file:
            for line in _lines(file, max(first, 0), end):
                text = _decoded(line, path).rstrip("\r\n")
                if text.strip():
                    yield self._of_json(text, path) if path.endswith(".jsonl") else text

    def _of_json(self, line: str, path: str) -> str:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: a line is no JSON ({error})") from None
        if not isinstance(value, dict) or not isinstance(value.get(self.field), str):
            raise UserError(f"{path}: a line has no text in the field {self.field!r}")
        text = value[self.field]
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{path}: a line has text that UTF-8 has no bytes for ({error.reason})") from None
        return text


def _lines(file: BinaryIO, first: int, end: int) -> Iterator[bytes]:
    """Lines that begin at a byte from `first` to before `end`."""
    place = first
    if first:  # the rest of a line that began earlier; nothing of one that begins here
        file.seek(first - 1)
        place += len(file.readline()) - 1
    while place < end and (line := file.readline()):
        place += len(line)
        yield line


def _files(path: Path) -> tuple[tuple[str, int], ...]:
    """Text files and their sizes, in order of their paths."""
    if path.is_dir():
        found = [file for file in _below(path) if file.suffix in _SUFFIXES]
    elif any(sign in path.name for sign in "*?["):
        found = list(path.parent.glob(path.name))
    else:
        found = [path]
    files = tuple(sorted((str(file), size) for file in found if not file.is_dir() and (size := file_size(file))))
    if not files:
        raise UserError(f"no text in {path} (looked for {', '.join(sorted(_SUFFIXES))})")
    return files


def _below(folder: Path) -> Iterator[Path]:
    """Files in a folder and its subfolders; `epath` searches no address recursively."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path)
        else:
            yield path


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error.reason} at byte {error.start})") from None
