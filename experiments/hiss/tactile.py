"""Marker writing, intrinsic slip and joystick control, as the authors published them: HDF5 files of each demonstration.

Layout, names and preparation are those of the authors' code and its documentation; no file of the data was at hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.errors import UserError
from experiments.hiss.recordings import Recording, Track, aligned, folders_in, read_hdf5, track, velocities

RESKIN_CHANNELS = 30  # three axes of ten magnetometers
LARGEST_JUMP = 1000.0  # between two readings of a magnetometer, µT; a recording with a larger one is left out
XELA_PARTS = ("finger_sensor_values", "fingertip_sensor_values", "palm_sensor_values")
XELA_LIMIT = 1000.0
JOYSTICK_SECONDS = (15.0, 90.0)  # shortest and longest recording that is kept


def marker_writing(folder: Path) -> list[Recording]:
    """ReSkin readings (30), and the velocity of the hand in the plane (2), m/s.

    Args:
        folder: with `demonstration_*/reskin_sensor_values.h5` and `demonstration_*/kinova_cartesian_states.h5`.

    Returns:
        The recordings; those in which a sensor jumps are left out.

    Raises:
        UserError: a file is missing or has another format.
    """
    return [
        Recording(place.name, samples, velocities(pose[:, :2]))
        for place, samples, pose in _kinova_recordings(folders_in(folder, "demonstration_*"))
    ]


def intrinsic_slip(folder: Path) -> list[Recording]:
    """ReSkin readings (30), and velocities of the grasped object against the hand: x and z, m/s, and an angle, rad/s.

    Args:
        folder: with the files of `marker_writing` in `*/demonstration_*`.

    Returns:
        The recordings; those in which a sensor jumps are left out.

    Raises:
        UserError: a file is missing or has another format.
    """
    return [
        Recording(place.name, samples, velocities(_slipped(pose)))
        for place, samples, pose in _kinova_recordings(folders_in(folder, "*/demonstration_*"))
    ]


def joystick_control(folder: Path) -> list[Recording]:
    """Xela readings of a hand, and the joystick's x, y and twist less what they were at first.

    Args:
        folder: with `demonstration_*/touch_sensor_values.h5` and `demonstration_*/extreme3d_values.h5`.

    Returns:
        The recordings; those shorter than 15 s or longer than 90 s are left out.

    Raises:
        UserError: a file is missing or has another format.
    """
    found = []
    for place in folders_in(folder, "demonstration_*"):
        touch, joystick = place / "touch_sensor_values.h5", place / "extreme3d_values.h5"
        time, *parts = read_hdf5(touch, ("timestamps", *XELA_PARTS))
        if len({len(part) for part in parts}) > 1 or not len(parts[0]):
            raise UserError(f"{touch}: got parts of {[len(part) for part in parts]} readings, expected equal numbers")
        readings = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        resting = np.median(readings[:100], axis=0)
        sensors = track(touch, time, np.clip(readings - resting, -XELA_LIMIT, XELA_LIMIT))
        moved, axes = read_hdf5(joystick, ("timestamps", "axes"))
        told = track(joystick, moved, axes, channels=3)
        shortest, longest = JOYSTICK_SECONDS
        if all(shortest <= round(given.time[-1] - given.time[0]) <= longest for given in (sensors, told)):
            samples, axes = aligned(place, sensors, told)
            found.append(Recording(place.name, samples, axes - axes[0]))
    if not found:
        raise UserError(f"{folder}: no recording between {JOYSTICK_SECONDS[0]:g} and {JOYSTICK_SECONDS[1]:g} s")
    return found


def _kinova_recordings(folders: list[Path]) -> list[tuple[Path, np.ndarray, np.ndarray]]:
    """Folder, ReSkin at 50 Hz less what it was at first, and position and orientation of the hand (T, 7) at 5 Hz."""
    found = []
    for place in folders:
        reskin, kinova = place / "reskin_sensor_values.h5", place / "kinova_cartesian_states.h5"
        time, readings = read_hdf5(reskin, ("timestamps", "sensor_values"))
        sensors = track(reskin, time, readings, channels=RESKIN_CHANNELS)
        if np.abs(np.diff(sensors.values, axis=0)).max() > LARGEST_JUMP:
            continue
        time, positions, orientations = read_hdf5(kinova, ("timestamps", "positions", "orientations"))
        if positions.shape[1:] != (3,) or orientations.shape != (len(positions), 4):
            got = f"positions {list(positions.shape)} and orientations {list(orientations.shape)}"
            raise UserError(f"{kinova}: got {got}, expected (n, 3) and (n, 4)")
        told = track(kinova, time, np.concatenate([positions, orientations], axis=1))
        resting = Track(sensors.time, sensors.values - sensors.values[:5].mean(axis=0))
        found.append((place, *aligned(place, resting, told)))
    if not found:
        raise UserError(f"{folders[0].parent}: every recording has a jump of more than {LARGEST_JUMP:g}")
    return found


def _slipped(pose: np.ndarray) -> np.ndarray:
    """x, z and the rotation about the second axis since the start, of positions and quaternions x, y, z, w (T, 7)."""
    from scipy.spatial.transform import Rotation

    turned = Rotation.from_quat(pose[:, 3:])
    angle = (turned * turned[0].inv()).as_rotvec()[:, 1]
    return np.stack([*(pose[:, :3] - pose[0, :3]).T[[0, 2]], angle], axis=1)
