"""The six published sets by name, from local folders: `load("vector", "csp")` reads `csp/vector`.

train, held_out = load("marker_writing", "csp")
samples, targets = train[0].samples, train[0].targets      (10 T, 30) at 50 Hz and (T, 2) at 5 Hz
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.errors import UserError
from experiments.hiss import inertial, tactile
from experiments.hiss.recordings import Recording
from experiments.registry import unknown
from experiments.training.recording import recorder

TRAINED_ON = 0.8


@dataclass(frozen=True)
class DataSet:
    """Where a set lies, and how it is read and divided.

    Attributes:
        folder: its name.
        read: a folder -> recordings.
        split: "first" four fifths are trained on, four fifths at "random", or there are "folders" for both parts.
        train: those folders, to train on.
        held_out: those folders, held out.
    """

    folder: str
    read: Callable[[Path], list[Recording]]
    split: Literal["first", "random", "folders"]
    train: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


_RONIN = ("train_dataset_1", "train_dataset_2", "seen_subjects_test_set")
DATA_SETS = {
    "marker_writing": DataSet("marker_writing_hiss_dataset", tactile.marker_writing, "first"),
    "intrinsic_slip": DataSet("intrinsic_slip_hiss_dataset", tactile.intrinsic_slip, "random"),
    "joystick_control": DataSet("joystick_control_hiss_dataset", tactile.joystick_control, "random"),
    "ronin": DataSet("ronin", inertial.ronin, "folders", _RONIN, ("unseen_subjects_test_set",)),
    "vector": DataSet("vector", inertial.vector, "first"),
    "total_capture": DataSet("total_capture", inertial.total_capture, "folders", ("train",), ("test",)),
}


def load(name: str, folder: str | Path) -> tuple[list[Recording], list[Recording]]:
    """The recordings of a set, to train on and held out.

    The division at random is ours: the published one depends on a generator of another library.

    Args:
        name: one of DATA_SETS.
        folder: with the set's own folder in it.

    Returns:
        Two lists.

    Raises:
        UserError: there is no such set, a folder or a file is missing, or a file has another format.

    Example:
        >>> load("vektor", "csp")
        Traceback (most recent call last):
        ...
        experiments.errors.UserError: unknown data set 'vektor'; nearest: vector
    """
    if name not in DATA_SETS:
        raise UserError(unknown("data set", name, DATA_SETS))
    if recorder() is not None:
        from experiments.planning import stand_ins

        train, held_out = ([Recording(name, *arrays)] * count for count, arrays in stand_ins.recordings(name))
        return train, held_out
    data_set = DATA_SETS[name]
    place = Path(folder) / data_set.folder
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; the layout is in experiments/hiss/README.md")
    if data_set.split == "folders":
        parts = (data_set.train, data_set.held_out)
        train, held_out = ([r for one in part for r in data_set.read(place / one)] for part in parts)
        return train, held_out
    recordings = data_set.read(place)
    order = np.arange(len(recordings))
    if data_set.split == "random":
        order = np.random.default_rng(0).permutation(order)
    cut = int(TRAINED_ON * len(order))
    if not cut:
        raise UserError(f"{place}: got {len(order)} recording that can be read, expected at least 2")
    return [recordings[i] for i in order[:cut]], [recordings[i] for i in order[cut:]]
