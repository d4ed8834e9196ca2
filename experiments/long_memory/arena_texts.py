"""The expressions and texts of the Long Range Arena as rows of bytes: ListOps, IMDB's reviews and pairs of papers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.sources.listops import END, SYMBOLS
from experiments.training.data import Rows, tfds_source

LAYOUT = "the layout is in experiments/long_memory/README.md"
IMDB = "imdb_reviews"
_ELSEWHERE = (
    "generated ListOps in long_memory/recall; to prepare it, with TensorFlow installed: "
    "tfds build imdb_reviews --file_format=array_record, which downloads aclImdb_v1.tar.gz"
)
_IDS = {symbol: id for id, symbol in enumerate(SYMBOLS) if symbol != END}
_NO_PARENTHESES = str.maketrans("", "", "()")


def listops(file: Path, length: int) -> Rows:
    """Expressions without their parentheses, which say nothing that the brackets do not.

    Args:
        file: tab-separated, with the columns Source, such as "( ( ( [MAX 4 ) 7 ) ] )", and Target, a digit.
        length: tokens that are read.

    Returns:
        Rows of ids in SYMBOLS.

    Raises:
        UserError: the file is missing, or has another format.
    """
    read, labels = [], []
    for number, row in _table(file, ("Source", "Target")):
        tokens = row[0].translate(_NO_PARENTHESES).split()
        wrong = next((token for token in tokens if token not in _IDS), None)
        if wrong is not None or not tokens:
            raise UserError(f"{file}, line {number}: got {wrong or 'no token'!r}, expected tokens of {' '.join(_IDS)}")
        read.append((bytes([_IDS[token] for token in tokens[:length]]),))
        labels.append(_label(file, number, row[1], 10))
    return as_rows(file, read, labels, length)


def _table(file: Path, header: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Numbers and fields of the lines below a header."""
    with existing(file).open(newline="", encoding="utf-8", errors="replace") as lines:
        reader = csv.reader(lines, delimiter="\t")
        try:
            if (found := next(reader, [])) != list(header):
                raise UserError(f"{file}: got the columns {str(found)[:80]}, expected {', '.join(header)} by tabs")
            for row in reader:
                if len(row) != len(header):
                    got = f"{len(row)} fields"
                    raise UserError(f"{file}, line {reader.line_num}: got {got}, expected {len(header)} by tabs")
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{file}, line {reader.line_num}: {error}, expected tab-separated text") from error


def pairs(file: Path, length: int) -> Rows:
    """Pairs of papers, byte by byte, and whether one cites the other.

    Args:
        file: tab-separated without a header and without quotes: label, two ids, two texts.
        length: bytes of each text that are read.

    Returns:
        Rows of both texts one behind the other.

    Raises:
        UserError: the file is missing, or has another format; that with labels and ids alone has.
    """
    read, labels = [], []
    with existing(file).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) != 5:
                expected = "5 by tabs: label, two ids, two texts"
                raise UserError(f"{file}, line {number}: got {len(fields)} fields, expected {expected}")
            read.append((fields[3][:length], fields[4][:length]))
            labels.append(_label(file, number, fields[0].decode(errors="replace"), 2))
    return as_rows(file, read, labels, length)


def reviews(split: str, data_dir: str | None, length: int) -> Rows:
    """IMDB's reviews, byte by byte, and whether they are favourable.

    Args:
        split: "train" or "test".
        data_dir: see `load`.
        length: bytes that are read.

    Returns:
        Rows of one text.

    Raises:
        UserError: the data set is neither prepared nor downloadable.
    """
    source = tfds_source(IMDB, split, data_dir, embedded=_ELSEWHERE)
    found = [(bytes(example["text"]), int(example["label"])) for example in source]
    if any(label not in (0, 1) for _, label in found):
        raise UserError(f"{IMDB} ({split}): got a label other than 0 and 1; prepare it again")
    return as_rows(f"{IMDB} ({split})", [(text[:length],) for text, _ in found], [label for _, label in found], length)


def as_rows(name: Any, read: Sequence[tuple[bytes, ...]], labels: Sequence[int], length: int) -> Rows:
    """Texts of a length or less, filled up behind with zeros; an empty one counts as one zero.

    Args:
        name: where they are from, for the message.
        read: texts of each example, N.
        labels: N.
        length: to fill up to.

    Returns:
        Rows.

    Raises:
        UserError: there is none.

    Example:
        >>> rows = as_rows("here", [(b"ab", b"")], [1], 3)
        >>> rows[0]["tokens"].tolist(), rows[0]["lengths"].tolist()
        ([97, 98, 0, 0, 0, 0], [2, 1])
    """
    if not read:
        raise UserError(f"{name}: got no examples")
    tokens = np.zeros((len(read), len(read[0]), length), np.uint8)
    lengths = np.ones(tokens.shape[:2], np.int32)
    for i, texts in enumerate(read):
        for j, text in enumerate(texts):
            tokens[i, j, : len(text)] = np.frombuffer(text, np.uint8)
            lengths[i, j] = max(1, len(text))
    flat = tokens.reshape(len(read), -1)
    return Rows({"tokens": flat, "lengths": lengths, "label": np.array(labels, np.int32)})


def existing(path: Path) -> Path:
    """A path that is there.

    Raises:
        UserError: it is not.

    Example:
        >>> existing(Path("tsv_data"))
        Traceback (most recent call last):
        ...
        experiments.errors.UserError: tsv_data: not there; the layout is in experiments/long_memory/README.md
    """
    if not path.exists():
        raise UserError(f"{path}: not there; {LAYOUT}")
    return path


def _label(file: Path, number: int, text: str, classes: int) -> int:
    """A label, which some files have as a decimal fraction."""
    try:
        label = float(text)
    except ValueError:
        label = -1.0
    if label not in range(classes):
        raise UserError(f"{file}, line {number}: got the label {text[:20]!r}, expected one from 0 to {classes - 1}")
    return int(label)
