"""Long Range Arena: its six tasks as rows of tokens, from the folder that its authors released and from TFDS.

    parts = load("listops", "lra_release/lra_release")
    parts.train[0]      {"tokens": (2000,) uint8, "lengths": (1,) int32, "label": int32}

File names, columns, splits and what is cut are those of the released code (google-research/long-range-arena) and of
S4's, which both read this folder; no file of the data was at hand. Text and images of the release come from TFDS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.errors import UserError
from experiments.long_memory.arena_pictures import images, paths
from experiments.long_memory.arena_tasks import IMAGE, LISTOPS, PATH_X, PATHFINDER, RETRIEVAL, TASKS, TEXT
from experiments.long_memory.arena_texts import listops, pairs, reviews
from experiments.registry import unknown
from experiments.training.data import Rows
from experiments.training.recording import recorder

LISTOPS_FILES = tuple(f"listops-1000/basic_{part}.tsv" for part in ("train", "val", "test"))
RETRIEVAL_FILES = tuple(f"tsv_data/new_aan_pairs.{part}.tsv" for part in ("train", "eval", "test"))


class Part(Protocol):
    """Examples with random access, and what tells them from others."""

    columns: Any

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One example."""
        ...


class Parts(NamedTuple):
    """A task's examples: "tokens" (texts times length,) uint8, "lengths" (texts,) and "label".

    Attributes:
        train: to train on.
        validation: to choose an update on; None where the release has none.
        test: to be told.
    """

    train: Part
    validation: Part | None
    test: Part


def load(name: str, folder: str | Path, *, data_dir: str | None = None, longest: int = 4000) -> Parts:
    """The three parts of a task.

    Args:
        name: one of TASKS.
        folder: what was released, see the README of this folder; text and image do not need it.
        data_dir: where TFDS's data sets are prepared; None is TFDS's default.
        longest: most tokens of an expression or text; what is longer loses its end, here or at the published length.

    Returns:
        The parts.

    Raises:
        UserError: there is no such task, a file is missing, or a file has another format.

    Example:
        >>> load("listopts", "lra_release")
        Traceback (most recent call last):
        ...
        experiments.errors.UserError: unknown task 'listopts'; nearest: listops
    """
    if name not in TASKS:
        raise UserError(unknown("task", name, TASKS))
    task, place = TASKS[name], Path(folder)
    length = task.tokens(longest)
    if recorder() is not None:
        from experiments.planning import stand_ins

        rows = Rows(stand_ins.sequences(task.texts, length))
        return Parts(rows, rows, rows)
    readers: dict[str, Callable[[], Parts]] = {
        LISTOPS: lambda: Parts(*(listops(place / file, length) for file in LISTOPS_FILES)),
        TEXT: lambda: Parts(reviews("train", data_dir, length), None, reviews("test", data_dir, length)),
        RETRIEVAL: lambda: Parts(*(pairs(place / file, length) for file in RETRIEVAL_FILES)),
        IMAGE: lambda: Parts(*(images(split, data_dir) for split in ("train[:90%]", "train[90%:]", "test"))),
        PATHFINDER: lambda: Parts(*paths(place / "pathfinder32", 32)),
        PATH_X: lambda: Parts(*paths(place / "pathfinder128", 128)),
    }
    return readers[name]()
