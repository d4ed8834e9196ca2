"""Recordings of the published sets: what they become, and how files are read and checked.

Sensors and what they shall tell were recorded at rates of their own. As in the released preparation, the time that both
cover is cut to whole seconds, and both are interpolated linearly, the sensors at 50 Hz and the rest at 5 Hz, from the
same start; so the target of a chunk of ten samples stands at its first one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.errors import UserError

SAMPLE_RATE, TARGET_RATE = 50, 5


class Track(NamedTuple):
    """Values (n, C) at times (n,), s."""

    time: np.ndarray
    values: np.ndarray


class Recording(NamedTuple):
    """A recording at the rates of the benchmark.

    Attributes:
        name: of its folder.
        samples: (10 T, C) at 50 Hz.
        targets: (T, Y) at 5 Hz.
    """

    name: str
    samples: np.ndarray
    targets: np.ndarray


def track(path: Path, time: np.ndarray, values: np.ndarray, channels: int | None = None) -> Track:
    """Times and values of one file, checked; of unequal lengths, as far as both go.

    Args:
        path: of the file, for messages.
        time: (n,), s.
        values: (m, C).
        channels: C that is expected; None takes any.

    Returns:
        The track.

    Raises:
        UserError: a shape is another, there are fewer than two values, one is not finite, or time goes backwards.

    Example:
        >>> track(Path("imu.txt"), np.arange(3.0), np.ones((2, 6)), 6).values.shape
        (2, 6)
    """
    if time.ndim != 1 or values.ndim != 2 or channels not in (None, values.shape[1]):
        expected = f"(n,) and (n, {'channels' if channels is None else channels})"
        raise UserError(f"{path}: got times {list(time.shape)} and values {list(values.shape)}, expected {expected}")
    both = min(len(time), len(values))
    time, values = np.asarray(time[:both], float), np.asarray(values[:both], float)
    if both < 2:
        raise UserError(f"{path}: got {both} readings, expected at least 2")
    if not (np.isfinite(time).all() and np.isfinite(values).all()):
        raise UserError(f"{path}: got a value that is not finite")
    if (np.diff(time) < 0).any():
        raise UserError(
            f"{path}: got times that go backwards, first behind reading {int(np.argmax(np.diff(time) < 0))}"
        )
    return Track(time, values)


def aligned(path: Path, sensors: Track, told: Track, most_seconds: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """Both tracks over the whole seconds that they share, at the rates of the benchmark.

    Args:
        path: of the recording, for messages.
        sensors: what is read.
        told: what it shall tell.
        most_seconds: at which a recording is cut.

    Returns:
        (10 T, C) and (T, Y).

    Raises:
        UserError: they share no second.

    Example:
        >>> time = np.arange(0, 2.5, 0.25)
        >>> fast, slow = aligned(Path("a"), Track(time, time[:, None]), Track(time + 0.1, time[:, None]))
        >>> fast.shape, slow.shape, round(float(fast[0, 0]), 6)
        ((100, 1), (10, 1), 0.1)
    """
    start, end = max(sensors.time[0], told.time[0]), min(sensors.time[-1], told.time[-1])
    seconds = min(math.floor(end - start + 1e-9), most_seconds)
    if seconds < 1:
        raise UserError(f"{path}: sensors and targets share {max(0.0, end - start):.1f} s, expected at least 1 s")
    count = int(seconds * TARGET_RATE)
    return (
        _interpolated(sensors, start + np.arange(count * SAMPLE_RATE // TARGET_RATE) / SAMPLE_RATE),
        _interpolated(told, start + np.arange(count) / TARGET_RATE),
    )


def _interpolated(given: Track, time: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(time, given.time, channel) for channel in given.values.T], axis=1)


def velocities(positions: np.ndarray) -> np.ndarray:
    """Differences of positions (T, Y) at 5 Hz, per second; the first is 0, as in the released preparation.

    Example:
        >>> velocities(np.array([[0.0], [0.2], [0.6]])).ravel().round(6).tolist()
        [0.0, 1.0, 2.0]
    """
    return np.diff(positions, axis=0, prepend=positions[:1]) * TARGET_RATE


def read_hdf5(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Data sets of an HDF5 file.

    Args:
        path: of the file.
        names: of the data sets.

    Returns:
        The arrays, in the order of the names.

    Raises:
        UserError: h5py is not installed, there is no such file, it is no HDF5, or a data set is missing.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading HDF5 needs h5py: pip install 'lightnet-lab[hdf5]'") from None
    try:
        with h5py.File(path, "r") as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise UserError(f"{path}: no data set {', '.join(missing)}; it has {', '.join(sorted(file)) or 'none'}")
            return [np.asarray(file[name]) for name in names]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError:
        raise UserError(f"{path}: no HDF5 file, or a damaged one") from None


def read_numbers(path: Path, header_lines: int, columns: int) -> np.ndarray:
    """Numbers between blanks, line by line.

    Args:
        path: of the file.
        header_lines: lines before the numbers.
        columns: numbers of a line, at least.

    Returns:
        (lines, columns), float64.

    Raises:
        UserError: there is no such file, or a line has fewer numbers or something else.
    """
    rows = []
    for number, line in enumerate(lines_of(path)):
        if number < header_lines or not line.strip():
            continue
        try:
            rows.append([float(word) for word in line.split()[:columns]])
        except ValueError:
            raise UserError(
                f"{path}: line {number + 1} holds something that is no number: {line.strip()[:60]!r}"
            ) from None
        if len(rows[-1]) < columns:
            raise UserError(f"{path}: line {number + 1} has {len(rows[-1])} numbers, expected {columns}")
    if not rows:
        raise UserError(f"{path}: got no numbers behind {header_lines} lines of header")
    return np.array(rows)


def lines_of(path: Path) -> list[str]:
    """Lines of a text file.

    Raises:
        UserError: there is no such file, or it is no text.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: no text file") from None


def folders_in(folder: Path, pattern: str) -> list[Path]:
    """Folders of a pattern, sorted by their path.

    Raises:
        UserError: there is none.
    """
    found = sorted(path for path in folder.glob(pattern) if path.is_dir())
    if not found:
        raise UserError(f"{folder}: no folder {pattern}; the layout is in experiments/hiss/README.md")
    return found
