"""Metrics of a training: JSON lines always, TensorBoard beside them, progress on the terminal."""

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.files import atomic_write_text

Row = dict[str, Any]
FLUSH_SECONDS = 2.0


class MetricsLog:
    """Rows {"step", "split", name: value} in `metrics.jsonl`, written every two seconds; split is "train" or "eval".

    TensorBoard gets each evaluation, and of the training rows the newest of each write: a curve for the eye, at no cost
    for the loop. The JSON lines have every step.
    """

    def __init__(self, folder: Path, step: int = 0, *, resumed: bool = False) -> None:
        """Begin, or go on behind the checkpoint of `step`.

        Going on drops what will be logged again: training rows from `step` on (the one of `step` itself is logged only
        after the next update) and evaluations after it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.rows: list[Row] = []
        if resumed and self.path.exists():
            last = {"train": step - 1, "eval": step}
            self.rows = [row for row in read_rows(self.path) if row["step"] <= last[row["split"]]]
        atomic_write_text(self.path, _lines(self.rows))
        self._unwritten: list[Row] = []
        self._last_write = time.monotonic()
        # TensorBoard forgets everything from this step on.
        self._board = _board(folder / "tensorboard", step + 1 if resumed else 0)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add one row."""
        row = {"step": step, "split": split, **values}
        self.rows.append(row)
        self._unwritten.append(row)
        if time.monotonic() - self._last_write > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand every row to the system."""
        if self._unwritten:
            with self.path.open("a") as file:
                file.write(_lines(self._unwritten))
            self._to_board(self._unwritten)
            self._unwritten = []
        self._last_write = time.monotonic()

    def sync(self) -> None:
        """Put every row on the disk."""
        self.flush()
        with self.path.open("a") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self._board.close()

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """The rows of one split as arrays by name, in the order of steps."""
        rows = [row for row in self.rows if row["split"] == split]
        names = [name for name in (rows[0] if rows else {}) if name != "split"]
        return {name: np.array([row[name] for row in rows]) for name in names}

    def _to_board(self, rows: list[Row]) -> None:
        training = [row for row in rows if row["split"] == "train"][-1:]
        for row in training + [row for row in rows if row["split"] == "eval"]:
            for name, value in row.items():
                if name not in ("step", "split"):
                    self._board.add_scalar(f"{row['split']}/{name}", value, row["step"])


def read_rows(path: Path) -> Iterable[Row]:
    """The rows of a metrics file; a last line that a kill left half-written is dropped."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class Progress:
    """A progress bar with the time left on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, label: str, total: int, start: int = 0) -> None:
        """Begin at `start` of `total` updates."""
        from tqdm import tqdm

        # disable=None: no bar where stderr is not a terminal.
        self._bar = tqdm(total=total, initial=start, desc=label, unit="step", leave=False, disable=None)
        self._label, self._total, self._step, self._start = label, total, start, start
        self._began = self._shown = time.monotonic()

    def advance(self, values: Mapping[str, float]) -> None:
        """Count one update."""
        self._step += 1
        self._bar.update()
        now = time.monotonic()
        if now - self._shown < (10.0 if self._bar.disable else 0.5):
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


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _board(folder: Path, purge_step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)
