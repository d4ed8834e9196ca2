"""RoNIN, VECtor and TotalCapture: inertial sensors, in the files of their own projects as the authors' code reads them.

No file of the data was at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.errors import UserError
from experiments.hiss.recordings import (
    Recording,
    Track,
    aligned,
    folders_in,
    lines_of,
    read_hdf5,
    read_numbers,
    track,
    velocities,
)

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

RONIN_SECONDS = 240
RONIN_ORIENTATIONS = {
    "gyro_integration_error": None,
    "grv_ori_error": "synced/game_rv",
    "ekf_ori_error": "pose/ekf_ori",
}
# Shape of what is read of a recording's information, where it is there.
RONIN_NUMBERS: dict[str, tuple[int, ...]] = {
    "imu_init_gyro_bias": (3,),
    "imu_acce_bias": (3,),
    "imu_acce_scale": (3,),
    "start_calibration": (4,),
    "start_frame": (),
    **dict.fromkeys(RONIN_ORIENTATIONS, ()),
}
CAPTURE_RATE = 60.0
CAPTURE_SENSORS: tuple[str, ...] = ("Head", "Sternum", "Pelvis", "L_UpArm", "R_UpArm", "L_LowArm", "R_LowArm")
CAPTURE_SENSORS += ("L_UpLeg", "R_UpLeg", "L_LowLeg", "R_LowLeg", "L_Foot", "R_Foot")
CAPTURE_JOINTS = 21
METRES_PER_INCH = 0.0254


def ronin(folder: Path) -> list[Recording]:
    """Acceleration and rotation of a phone in the frame of the world (6), and its velocity in the plane (2), m/s.

    Args:
        folder: with `a*/data.hdf5` and `a*/info.json`.

    Returns:
        The recordings, of at most 240 s.

    Raises:
        UserError: a file is missing or has another format.
    """
    return [_ronin_recording(place) for place in folders_in(folder, "a*")]


def vector(folder: Path) -> list[Recording]:
    """Acceleration and rotation of a sensor (6), and its velocity in the frame in which it began (3), m/s.

    Args:
        folder: with `*/imu.txt` (three lines, then time, rotation and acceleration) and `*/gt.txt` (two lines, then
            time, position and quaternion x, y, z, w).

    Returns:
        The recordings.

    Raises:
        UserError: a file is missing or has another format.
    """
    found = []
    for place in folders_in(folder, "*"):
        imu, truth = read_numbers(place / "imu.txt", 3, 7), read_numbers(place / "gt.txt", 2, 8)
        sensors = track(place / "imu.txt", imu[:, 0], imu[:, [4, 5, 6, 1, 2, 3]])
        told = track(place / "gt.txt", truth[:, 0], _from_the_first(place / "gt.txt", truth[:, 1:4], truth[:, 4:]))
        samples, positions = aligned(place, sensors, told)
        found.append(Recording(place.name, samples, velocities(positions)))
    return found


def total_capture(folder: Path) -> list[Recording]:
    """Accelerations (39) and orientations (78) of 13 sensors on a body, and the velocities of its 21 joints (63), m/s.

    Orientations are the first two columns of a rotation matrix. Positions are in inches in the files, and of each joint
    in the frame in which it began.

    Args:
        folder: with `*/calib_imu_ref.txt`, `*/imu.txt`, `*/gt_skel_gbl_pos.txt` and `*/gt_skel_gbl_ori.txt`.

    Returns:
        The recordings.

    Raises:
        UserError: a file is missing or has another format.
    """
    found = []
    for place in folders_in(folder, "*"):
        sensors = _capture_sensors(place)
        position = read_numbers(place / "gt_skel_gbl_pos.txt", 1, 3 * CAPTURE_JOINTS).reshape(-1, CAPTURE_JOINTS, 3)
        turned = read_numbers(place / "gt_skel_gbl_ori.txt", 1, 4 * CAPTURE_JOINTS).reshape(-1, CAPTURE_JOINTS, 4)
        frames = min(len(sensors.time), len(position), len(turned))
        quaternions = np.roll(turned[:frames], -1, axis=-1)  # w, x, y, z in the file
        path = place / "gt_skel_gbl_ori.txt"
        joints = [_from_the_first(path, position[:frames, i], quaternions[:, i]) for i in range(CAPTURE_JOINTS)]
        metres = METRES_PER_INCH * np.concatenate(joints, axis=1)
        told = track(place / "gt_skel_gbl_pos.txt", sensors.time[:frames], metres)
        samples, positions = aligned(place, sensors, told)
        found.append(Recording(place.name, samples, velocities(positions)))
    return found


def _ronin_recording(place: Path) -> Recording:
    path, info = place / "data.hdf5", _ronin_info(place / "info.json")
    names = ("synced/time", "synced/gyro_uncalib", "synced/acce", "pose/tango_pos", "pose/tango_ori")
    time, gyro, acceleration, position, tango = read_hdf5(path, names)
    _check_columns(
        path, time, {names[1]: (gyro, 3), names[2]: (acceleration, 3), names[3]: (position, 3), names[4]: (tango, 4)}
    )
    gyro = gyro - np.array(info["imu_init_gyro_bias"])
    acceleration = np.array(info["imu_acce_scale"]) * (acceleration - np.array(info["imu_acce_bias"]))
    turned = _ronin_orientation(path, info, time, gyro)
    calibration = _rotation(place / "info.json", info["start_calibration"])
    first = _rotation(path, tango[0])
    in_world = first * calibration * turned[0].inv() * turned
    begin = int(info.get("start_frame", 0))
    if not 0 <= begin < len(time):
        raise UserError(f"{place / 'info.json'}: got start_frame {begin}, expected one of {len(time)} frames")
    readings = np.concatenate([in_world.apply(acceleration), in_world.apply(gyro)], axis=1)
    sensors, told = (track(path, time[begin:], values[begin:]) for values in (readings, position[:, :2]))
    samples, positions = aligned(place, sensors, told, RONIN_SECONDS)
    return Recording(place.name, samples, velocities(positions))


def _ronin_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads("\n".join(lines_of(path)))
    except json.JSONDecodeError:
        raise UserError(f"{path}: no JSON file") from None
    needed = ("imu_init_gyro_bias", "imu_acce_bias", "imu_acce_scale", "start_calibration", *RONIN_ORIENTATIONS)
    missing = [name for name in needed if name not in info] if isinstance(info, dict) else list(needed)
    if missing:
        raise UserError(f"{path}: no field {', '.join(missing)}")
    for name, shape in RONIN_NUMBERS.items():
        if name in info and not _are_numbers(info[name], shape):
            expected = f"{shape[0]} numbers" if shape else "a number"
            raise UserError(f"{path}: got {name} {info[name]!r}, expected {expected}")
    return info


def _are_numbers(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        numbers = np.asarray(value)
    except ValueError:
        return False
    # a number in quotes is none: nothing can be subtracted from it
    return numbers.dtype.kind in "iuf" and numbers.shape == shape and bool(np.isfinite(numbers).all())


def _ronin_orientation(path: Path, info: dict[str, Any], time: np.ndarray, gyro: np.ndarray) -> Rotation:
    """The orientation whose error at the end of the recording is smallest."""
    from scipy.spatial.transform import Rotation

    (phone,) = read_hdf5(path, ("synced/game_rv",))
    source = RONIN_ORIENTATIONS[min(RONIN_ORIENTATIONS, key=lambda name: info[name])]
    if source is not None:
        (quaternions,) = read_hdf5(path, (source,))
        _check_columns(path, time, {source: (quaternions, 4)})
        return _rotation(path, quaternions)
    turns = Rotation.from_rotvec(gyro[:-1] * np.diff(time)[:, None])
    turned = [_rotation(path, phone[0])]
    for turn in turns:
        turned.append(turned[-1] * turn)
    return Rotation.concatenate(turned)


def _rotation(path: Path, quaternions: Any) -> Rotation:
    """Of quaternions w, x, y, z of a file."""
    from scipy.spatial.transform import Rotation

    try:
        return Rotation.from_quat(quaternions, scalar_first=True)
    except ValueError:
        raise UserError(f"{path}: got an orientation that is no quaternion") from None


def _check_columns(path: Path, time: np.ndarray, arrays: dict[str, tuple[np.ndarray, int]]) -> None:
    for name, (values, columns) in arrays.items():
        if values.shape != (*time.shape, columns):
            raise UserError(f"{path}: got {name} {list(values.shape)}, expected {[*time.shape, columns]}")


def _capture_sensors(place: Path) -> Track:
    """Acceleration and two columns of the orientation of every sensor, in the frame of the world, (frames, 117)."""
    path = place / "imu.txt"
    quaternions, accelerations = _capture_frames(path)
    to_world = _capture_calibration(place / "calib_imu_ref.txt")
    columns = []
    accelerated = []
    for i, name in enumerate(CAPTURE_SENSORS):
        turned = to_world[name] * _rotation(path, quaternions[:, i])
        accelerated.append(turned.apply(accelerations[:, i]))
        columns.append(turned.as_matrix()[:, :, :2].reshape(len(quaternions), 6))
    values = np.concatenate(accelerated + columns, axis=1)
    return track(path, np.arange(len(values)) / CAPTURE_RATE, values)


def _capture_calibration(path: Path) -> dict[str, Rotation]:
    from scipy.spatial.transform import Rotation

    words = [line.split() for line in lines_of(path)[1:] if line.strip()]
    try:
        found = {line[0]: Rotation.from_quat([float(word) for word in line[1:5]]) for line in words if len(line) >= 5}
    except ValueError:
        raise UserError(f"{path}: got an orientation that is no quaternion") from None
    if missing := [name for name in CAPTURE_SENSORS if name not in found]:
        raise UserError(f"{path}: no orientation of {', '.join(missing)}")
    return found


def _capture_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Quaternions w, x, y, z (frames, 13, 4) and accelerations (frames, 13, 3), in the order of the names."""
    lines = lines_of(path)
    head = lines[0].split() if lines else []
    if len(head) != 2 or not all(word.isdigit() for word in head):
        raise UserError(f"{path}: line 1 is {' '.join(head)[:40]!r}, expected the numbers of sensors and of frames")
    sensors, frames = map(int, head)
    if len(lines) < 1 + frames * (sensors + 1):
        raise UserError(f"{path}: got {len(lines)} lines, expected {1 + frames * (sensors + 1)}")
    values = np.full((frames, len(CAPTURE_SENSORS), 7), np.nan)
    for frame in range(frames):
        first = 2 + frame * (sensors + 1)  # behind the line with the number of the frame
        for number, line in enumerate(lines[first : first + sensors], start=first + 1):
            name, *words = line.split() or [""]
            if name in CAPTURE_SENSORS:
                try:
                    values[frame, CAPTURE_SENSORS.index(name)] = [float(word) for word in words[:7]]
                except ValueError:
                    raise UserError(f"{path}: line {number} has no quaternion and acceleration of {name}") from None
    if np.isnan(values).any():
        frame, sensor = np.argwhere(np.isnan(values).any(axis=-1))[0]
        raise UserError(f"{path}: frame {frame} has nothing of {CAPTURE_SENSORS[sensor]}")
    return values[..., :4], values[..., 4:]


def _from_the_first(path: Path, positions: np.ndarray, quaternions: np.ndarray) -> np.ndarray:
    """Positions (T, 3) in the frame of the first position and quaternion x, y, z, w (T, 4)."""
    from scipy.spatial.transform import Rotation

    try:
        first = Rotation.from_quat(quaternions[0])
    except ValueError:
        raise UserError(f"{path}: got a first orientation that is no quaternion") from None
    return first.inv().apply(positions - positions[0])
