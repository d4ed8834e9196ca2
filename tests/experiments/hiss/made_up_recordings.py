"""A few seconds of each published set, in its format, from a motion that is known."""

import json

import numpy as np
from scipy.spatial.transform import Rotation

from experiments.hiss.inertial import CAPTURE_SENSORS, METRES_PER_INCH

SECONDS = 4.0
TURN = Rotation.from_rotvec([0.3, -0.2, 0.5])  # from the frame of a sensor to that of the world
BODY = Rotation.from_rotvec([0.2, 0.4, -0.3])  # how the sensors of a body lie in the world
SPEED = np.array([0.5, -0.25, 0.125])  # constant, so that the velocities are known
SLIP = 0.4  # rad/s about the second axis


def times(rate, start=0.0):
    return start + np.arange(int(SECONDS * rate) + 1) / rate


def positions(time):
    return np.array([1.0, 2.0, 3.0]) + SPEED * time[:, None]


def write_hdf5(path, arrays):
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)


def reskin_and_kinova(place, seed, jump=0.0):
    """A demonstration of marker writing or intrinsic slip, both files with clocks of their own."""
    place.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    time, slow = times(95.0, 100.0), times(28.0, 100.35)
    readings = 40 + np.cumsum(rng.standard_normal((len(time), 30)), axis=0)
    readings[50:] += jump
    write_hdf5(place / "reskin_sensor_values.h5", {"sensor_values": readings, "timestamps": time})
    turned = Rotation.from_rotvec(np.outer(slow - slow[0], [0.0, SLIP, 0.0])) * TURN
    pose = {"positions": positions(slow - 100), "orientations": turned.as_quat(), "timestamps": slow}
    write_hdf5(place / "kinova_cartesian_states.h5", pose)
    return readings


def xela_and_joystick(place, seconds=16.0):
    place.mkdir(parents=True)
    rng = np.random.default_rng(3)
    time = np.arange(int(seconds * 60)) / 60
    shapes = {"finger_sensor_values": (3, 2, 4), "fingertip_sensor_values": (2, 5), "palm_sensor_values": (6,)}
    parts = {name: 2000 * rng.standard_normal((len(time), *shape)) for name, shape in shapes.items()}
    write_hdf5(place / "touch_sensor_values.h5", {**parts, "timestamps": time})
    axes = 0.1 + np.outer(time, [0.01, 0.02, -0.03])
    write_hdf5(place / "extreme3d_values.h5", {"axes": axes, "timestamps": time})
    return np.concatenate([part.reshape(len(time), -1) for part in parts.values()], axis=1)


def ronin(place, source="game_rv"):
    """A phone that turns about a fixed axis and feels a constant acceleration and rotation of the world."""
    place.mkdir(parents=True)
    time = times(200.0, 7.0)
    gyro = np.tile([0.2, 0.1, -0.3], (len(time), 1))
    steps = Rotation.from_rotvec(gyro[0] * (time - time[0])[:, None])
    phone = Rotation.from_rotvec([0.1, 0.2, 0.3]) * steps
    calibration, tango = Rotation.from_rotvec([-0.2, 0.4, 0.1]), Rotation.from_rotvec([0.0, 0.0, 1.0])
    bias, scale = np.array([0.01, 0.02, 0.03]), np.array([1.1, 0.9, 1.0])
    in_world = tango * calibration * steps
    acceleration = in_world.inv().apply(np.array([0.3, -0.2, 9.8]))
    wrong = steps.inv()  # what is not chosen: a constant rotation before the turns would cancel
    arrays = {
        "synced/time": time,
        "synced/gyro_uncalib": gyro + bias,
        "synced/acce": acceleration / scale + bias,
        "synced/game_rv": quaternions(wrong if source == "ekf" else phone),
        "pose/ekf_ori": quaternions(phone if source == "ekf" else wrong),
        "pose/tango_pos": positions(time - time[0]),
        "pose/tango_ori": np.tile(tango.as_quat(scalar_first=True), (len(time), 1)),
    }
    write_hdf5(place / "data.hdf5", arrays)
    error = {"gyro_integration": "gyro_integration_error", "game_rv": "grv_ori_error", "ekf": "ekf_ori_error"}
    info = {name: 1.0 if which == source else 9.0 for which, name in error.items()}
    info["gyro_integration_error"] = min(info["gyro_integration_error"], 5.0)  # it is never wrong here
    info |= {"imu_init_gyro_bias": bias.tolist(), "imu_acce_bias": bias.tolist(), "imu_acce_scale": scale.tolist()}
    info |= {"start_calibration": calibration.as_quat(scalar_first=True).tolist(), "start_frame": 10}
    (place / "info.json").write_text(json.dumps(info))
    return in_world.apply(gyro)


def quaternions(turned):
    return turned.as_quat(scalar_first=True)


def vector(place):
    place.mkdir(parents=True)
    time, slow = times(200.0), times(120.0, 0.1)
    readings = np.concatenate([time[:, None], np.tile([1.0, 2, 3, 4, 5, 6, 0, 0, 0], (len(time), 1))], axis=1)
    write_text(place / "imu.txt", 3, readings)
    turned = np.tile(TURN.as_quat(), (len(slow), 1))
    write_text(place / "gt.txt", 2, np.concatenate([slow[:, None], positions(slow), turned], axis=1))


def write_text(path, header, rows):
    lines = [f"# {number}" for number in range(header)]
    path.write_text("\n".join(lines + [" ".join(f"{value:.9f}" for value in row) for row in rows]) + "\n")


def total_capture(place):
    place.mkdir(parents=True)
    time = times(60.0)
    calibration = [f"{name} {' '.join(map(str, TURN.as_quat()))}" for name in CAPTURE_SENSORS]
    (place / "calib_imu_ref.txt").write_text("13\n" + "\n".join(calibration) + "\n")
    sensor = (TURN.inv() * BODY).as_quat(scalar_first=True)
    lines = [f"{len(CAPTURE_SENSORS)} {len(time)}"]
    for frame in range(len(time)):
        lines.append(str(frame + 1))
        for number, name in enumerate(CAPTURE_SENSORS):
            values = [*sensor, number, 2.0, 3.0, 0, 0, 0, 0, 0, 0]
            lines.append(f"{name} {' '.join(f'{value:.9f}' for value in values)}")
    (place / "imu.txt").write_text("\n".join(lines) + "\n")
    joints = np.concatenate([positions(time) / METRES_PER_INCH + joint for joint in range(21)], axis=1)
    extra = np.concatenate([joints, joints[-1:]])  # one frame more than the sensors have
    write_text(place / "gt_skel_gbl_pos.txt", 1, extra)
    write_text(place / "gt_skel_gbl_ori.txt", 1, np.tile(TURN.as_quat(scalar_first=True), (len(extra), 21)))
