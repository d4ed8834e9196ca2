"""Metrics of a training: JSON lines always, TensorBoard beside them, progress on the terminal.

In a folder of this machine the lines are `metrics.jsonl`. On an object store, where nothing can be appended, they are
segments `metrics/<number>.jsonl`, each written once; one named `<number>-all.jsonl`, with which a process begins, holds
everything that counts of those before it.
"""

import io
import json
import math
import os
import sys
import time
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments.files import (
    as_path,
    atomic_write_bytes,
    atomic_write_text,
    from_plain,
    is_object_store,
    make_folder,
    to_plain,
)

Row = dict[str, Any]
FILE, SEGMENTS = "metrics.jsonl", "metrics"
_READERS = 16  # segments that are fetched at once
_ATTEMPTS = 20  # to list segments while another process replaces them


class MetricsLog:
    """Rows {"step", "split", name: value}; split is "train", "eval" or "skipped" (an update that was not applied).

    They are written every two seconds, on an object store every thirty, and by `sync`. In a folder of this machine,
    and nowhere else, TensorBoard gets each evaluation, and of the training rows the newest of each write: a curve for
    the eye, at no cost for the loop. The JSON lines have every step.
    """

    def __init__(
        self, folder: Path, step: int = 0, *, resumed: bool = False, evaluated: bool = True, writes: bool = True
    ) -> None:
        """Begin, or go on behind the checkpoint of `step`.

        Going on drops what will be logged again: training rows and skipped ones from `step` on (the one of `step`
        itself is logged only after the next update) and evaluations after it.

        Args:
            folder: of the training.
            step: of the checkpoint.
            resumed: whether there is one; without it the metrics begin anew.
            evaluated: whether its state was evaluated before it was saved.
            writes: False in a process that only keeps the history, while another one writes it.
        """
        folder = as_path(folder)
        self._splits: dict[str, _Columns] = {}
        self._unwritten: list[Row] = []
        self._last_write = time.monotonic()
        self._sink: _File | _Segments | None = None
        self._board: Any = None
        kept = io.StringIO()
        for row in read_rows(folder) if resumed else ():
            if row["step"] <= (step if row["split"] == "eval" and evaluated else step - 1):
                self._remember(row)
                kept.write(_line(row))
        if not writes:
            return
        self._sink = _Segments(folder) if is_object_store(folder) else _File(folder)
        self._sink.begin(kept.getvalue())
        if not is_object_store(folder):
            # TensorBoard forgets everything from this step on.
            self._board = _board(folder / "tensorboard", step + 1 if resumed else 0)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Add one row."""
        row = {"step": step, "split": split, **values}
        self._remember(row)
        if self._sink is None:
            return
        self._unwritten.append(row)
        if time.monotonic() - self._last_write > self._sink.every:
            self.flush()

    def flush(self) -> None:
        """Hand every row to the system."""
        if self._sink is not None and self._unwritten:
            self._sink.append("".join(map(_line, self._unwritten)))
            self._to_board(self._unwritten)
            self._unwritten = []
        self._last_write = time.monotonic()

    def sync(self) -> None:
        """Put every row where it outlasts this machine's failure."""
        self.flush()
        if self._sink is not None:
            self._sink.sync()

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            if self._board is not None:
                _close(self._board)

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """The rows of one split as arrays by name, in the order of steps; NaN where a row lacks a number."""
        return self._splits[split].arrays() if split in self._splits else {}

    def _remember(self, row: Row) -> None:
        self._splits.setdefault(row["split"], _Columns()).add(row)

    def _to_board(self, rows: list[Row]) -> None:
        if self._board is None:
            return
        training = [row for row in rows if row["split"] == "train"][-1:]
        for row in training + [row for row in rows if row["split"] == "eval"]:
            for name, value in row.items():
                if name not in ("step", "split") and math.isfinite(value):
                    self._board.add_scalar(f"{row['split']}/{name}", value, row["step"])


def read_rows(folder: str | Path) -> Iterator[Row]:
    """The rows of a training, from its file or its segments, each (split, step) once.

    Args:
        folder: of the training, here or on an object store, or copied from there; another process may be writing.

    Yields:
        Rows in the order in which they were logged; lines that a kill left half-written are dropped.
    """
    last: dict[str, int] = {}
    for text in _texts(as_path(folder)):
        for line in io.BytesIO(text):
            row = _row(line)
            if row is not None and row["step"] > last.get(row["split"], -1):
                last[row["split"]] = row["step"]
                yield row


class _File:
    """Lines in one file, which are appended."""

    every = 2.0  # seconds between writes

    def __init__(self, folder: Path) -> None:
        self._path = make_folder(folder) / FILE

    def begin(self, text: str) -> None:
        """Replace all lines."""
        atomic_write_text(self._path, text)

    def append(self, text: str) -> None:
        """Add lines."""
        with self._path.open("a") as file:
            file.write(text)

    def sync(self) -> None:
        """Put them on the disk."""
        with self._path.open("a") as file:
            os.fsync(file.fileno())


class _Segments:
    """Lines in objects that are written once."""

    every = 30.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = max(map(_number, _segments(folder)), default=-1)

    def begin(self, text: str) -> None:
        """Replace all lines: by a segment that holds everything, after which the older ones may go."""
        before = _segments(self._folder)
        self._put("-all", text)
        for path in (*before, self._folder / FILE):
            path.unlink(missing_ok=True)

    def append(self, text: str) -> None:
        """Add lines."""
        self._put("", text)

    def sync(self) -> None:
        """An object that was uploaded is safe."""

    def _put(self, mark: str, text: str) -> None:
        atomic_write_bytes(self._folder / SEGMENTS / f"{self._number + 1:08d}{mark}.jsonl", text.encode())
        self._number += 1


class _Columns:
    """Values by name, eight bytes for a number instead of a dictionary for a row."""

    def __init__(self) -> None:
        self._length = 0
        self._values: dict[str, Any] = {}

    def add(self, row: Row) -> None:
        """Add one row."""
        for name, value in row.items():
            if name not in self._values and name != "split":
                self._values[name] = self._empty(name, value)
        for name, column in self._values.items():
            column.append(row.get(name, math.nan))
        self._length += 1

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of all columns."""
        return {name: np.array(column) for name, column in self._values.items()}

    def _empty(self, name: str, value: Any) -> Any:
        """A column for values like this one, blank in the rows so far."""
        if name == "step":
            return array("q")
        blank = [math.nan] * self._length
        return array("d", blank) if isinstance(value, float) else blank


class Progress:
    """A progress bar with the time left on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, label: str, total: int, start: int = 0, *, shown: bool = True) -> None:
        """Begin at `start` of `total` updates; only one of several processes shows it."""
        from tqdm import tqdm

        # disable=None: no bar where stderr is not a terminal.
        hidden = None if shown else True
        self._bar = tqdm(total=total, initial=start, desc=label, unit="step", leave=False, disable=hidden)
        self._every = (10.0 if self._bar.disable else 0.5) if shown else math.inf
        self._label, self._total, self._step, self._start = label, total, start, start
        self._began = self._shown = time.monotonic()

    def advance(self, values: Mapping[str, float]) -> None:
        """Count one update."""
        self._step += 1
        self._bar.update()
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            return
        left = (now - self._began) / (self._step - self._start) * (self._total - self._step)
        print(f"{self._label}: {self._step}/{self._total}, {text}, {left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def _line(row: Row) -> str:
    return json.dumps(to_plain(row), allow_nan=False) + "\n"


def _row(line: bytes) -> Row | None:
    """A row from its line, None if the line is damaged."""
    try:
        row = from_plain(json.loads(line))
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"step", "split"} <= row.keys() else None


def _texts(folder: Path) -> list[bytes]:
    """What the file holds, else the segments that count.

    A file that vanishes between being listed and being read was replaced by a newer one; then the list is made anew.
    """
    for patience in range(_ATTEMPTS, -1, -1):
        try:
            if (folder / FILE).exists():
                return [(folder / FILE).read_bytes()]
            paths = _segments(folder)
            whole = max((i for i, path in enumerate(paths) if path.stem.endswith("-all")), default=0)
            with ThreadPoolExecutor(_READERS) as readers:
                return list(readers.map(lambda path: path.read_bytes(), paths[whole:]))
        except FileNotFoundError:
            if not patience:
                raise
            time.sleep(0.1)
    return []


def _segments(folder: Path) -> list[Path]:
    """All segments, oldest first."""
    return sorted((folder / SEGMENTS).glob("*.jsonl"), key=_number)


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[0])


def _board(folder: Path, purge_step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def _close(board: Any) -> None:
    """Close TensorBoard's file; where that fails, end its thread, or both would fail once more when Python ends."""
    writers = [writer.event_writer for writer in board.all_writers.values()]
    try:
        board.close()
    except OSError:
        for writer in writers:
            if not writer._closed:
                writer._worker.stop()
                writer._closed = True
        raise
