"""The six published sets, from files of their formats with a motion that is known, and files of other formats."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.hiss.data_sets import DATA_SETS, load
from experiments.hiss.recordings import Track, aligned, read_hdf5
from tests.experiments.hiss import made_up_recordings as made_up

h5py = pytest.importorskip("h5py")  # of the extra hdf5, which the extra test has in it


def check_rates(recording, channels, targets):
    """Ten samples for each target, all finite, float64."""
    assert recording.samples.shape == (10 * len(recording.targets), channels)
    assert recording.targets.shape[1] == targets
    assert np.isfinite(recording.samples).all() and np.isfinite(recording.targets).all()


def test_a_target_stands_at_the_first_sample_of_its_chunk():
    time = np.arange(0, 3.3, 0.01)
    sensors, told = Track(time, time[:, None]), Track(time + 0.25, time[:, None] + 0.25)
    samples, targets = aligned(Path("a"), sensors, told)
    np.testing.assert_allclose(samples[:, 0], 0.25 + np.arange(150) / 50)
    np.testing.assert_allclose(targets, samples[::10])


def test_marker_writing(tmp_path):
    place = tmp_path / "marker_writing_hiss_dataset"
    for number in range(5):
        readings = made_up.reskin_and_kinova(place / f"demonstration_{number}", number, jump=-1e4 * (number == 1))
    train, held_out = load("marker_writing", tmp_path)
    assert [r.name for r in (*train, *held_out)] == [f"demonstration_{number}" for number in (0, 2, 3, 4)]  # no jump
    for recording in (*train, *held_out):
        check_rates(recording, 30, 2)
        assert len(recording.targets) == 15  # the clocks share 3.65 s: three whole seconds
        np.testing.assert_allclose(recording.targets[1:], np.tile(made_up.SPEED[:2], (14, 1)))
        assert (recording.targets[0] == 0).all()
    first = made_up.times(95.0, 100.0)
    baseline = readings[:5].mean(axis=0)
    expected = [np.interp(100.35 + 7 / 50, first, readings[:, i]) - baseline[i] for i in range(30)]
    np.testing.assert_allclose(held_out[-1].samples[7], expected)


def test_intrinsic_slip(tmp_path):
    for number in range(3):
        made_up.reskin_and_kinova(tmp_path / "intrinsic_slip_hiss_dataset" / "box" / f"demonstration_{number}", number)
    train, held_out = load("intrinsic_slip", tmp_path)
    assert len(train) == 2 and len(held_out) == 1
    assert held_out[0].name != "demonstration_2"  # which is the last: the division is at random
    check_rates(train[0], 30, 3)
    expected = [made_up.SPEED[0], made_up.SPEED[2], made_up.SLIP]
    np.testing.assert_allclose(train[0].targets[1:], np.tile(expected, (14, 1)), rtol=2e-3)


def test_joystick_control(tmp_path):
    place = tmp_path / "joystick_control_hiss_dataset"
    for number, seconds in enumerate((16.0, 12.0, 16.0)):
        readings = made_up.xela_and_joystick(place / f"demonstration_{number}", seconds)
    made_up.xela_and_joystick(place / "demonstration_3")
    short = {"axes": np.zeros((600, 3)), "timestamps": np.arange(600) / 60}  # so are 10 s of the joystick alone
    made_up.write_hdf5(place / "demonstration_3" / "extreme3d_values.h5", short)
    train, held_out = load("joystick_control", tmp_path)
    assert {r.name for r in (*train, *held_out)} == {"demonstration_0", "demonstration_2"}  # 12 s are too short
    assert DATA_SETS["joystick_control"].split == DATA_SETS["intrinsic_slip"].split == "random"
    check_rates(train[0], 24 + 10 + 6, 3)
    assert np.abs(train[0].samples).max() <= 1000
    first = np.clip(readings[0] - np.median(readings[:100], axis=0), -1000, 1000)  # all are made alike
    np.testing.assert_allclose(train[0].samples[0], first)
    np.testing.assert_allclose(train[0].targets, np.outer(np.arange(75) / 5, [0.01, 0.02, -0.03]), atol=1e-9)


@pytest.mark.parametrize("source", ["game_rv", "ekf", "gyro_integration"])
def test_ronin(tmp_path, source):
    for part in (*DATA_SETS["ronin"].train, *DATA_SETS["ronin"].held_out):
        turning = made_up.ronin(tmp_path / "ronin" / part / "a000_1", source)
    train, held_out = load("ronin", tmp_path)
    assert len(train) == 3 and len(held_out) == 1
    check_rates(train[0], 6, 2)
    np.testing.assert_allclose(train[0].samples[:, :3], np.tile([0.3, -0.2, 9.8], (150, 1)), atol=1e-6)
    np.testing.assert_allclose(train[0].samples[20, 3:], turning[10 + 80], atol=1e-6)  # 20 / 50 Hz behind frame 10
    np.testing.assert_allclose(train[0].targets[1:], np.tile(made_up.SPEED[:2], (14, 1)))


def test_ronin_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.hiss.inertial.RONIN_SECONDS", 2)
    for part in (*DATA_SETS["ronin"].train, *DATA_SETS["ronin"].held_out):
        made_up.ronin(tmp_path / "ronin" / part / "a000_1")
    _, (recording,) = load("ronin", tmp_path)
    assert recording.samples.shape == (100, 6) and recording.targets.shape == (10, 2)


def test_vector(tmp_path):
    for name in "abcde":
        made_up.vector(tmp_path / "vector" / name)
    train, held_out = load("vector", tmp_path)
    assert [r.name for r in train] == list("abcd") and [r.name for r in held_out] == ["e"]
    check_rates(train[0], 6, 3)
    np.testing.assert_allclose(train[0].samples, np.tile([4.0, 5, 6, 1, 2, 3], (150, 1)))
    np.testing.assert_allclose(
        train[0].targets[1:], np.tile(made_up.TURN.inv().apply(made_up.SPEED), (14, 1)), rtol=1e-5
    )


def test_total_capture(tmp_path):
    for part in ("train", "test"):
        made_up.total_capture(tmp_path / "total_capture" / part / "s1_walking1")
    train, held_out = load("total_capture", tmp_path)
    assert len(train) == len(held_out) == 1
    check_rates(train[0], 117, 63)
    accelerations, columns = np.split(train[0].samples[0], [39])
    expected = made_up.BODY.apply([[i, 2, 3] for i in range(13)])
    np.testing.assert_allclose(accelerations.reshape(13, 3), expected, atol=1e-6)
    expected = np.tile(made_up.BODY.as_matrix()[:, :2].ravel(), (13, 1))
    np.testing.assert_allclose(columns.reshape(13, 6), expected, atol=1e-6)
    speed = made_up.TURN.inv().apply(made_up.SPEED)
    np.testing.assert_allclose(train[0].targets[1:].reshape(-1, 21, 3), np.tile(speed, (19, 21, 1)), rtol=1e-4)


def broken(tmp_path, name, change):
    """A set whose first recording is changed, and what reading it says, in one line."""
    makers = {
        "marker_writing": lambda place: made_up.reskin_and_kinova(place / "demonstration_0", 0),
        "joystick_control": lambda place: made_up.xela_and_joystick(place / "demonstration_0"),
        "ronin": lambda place: made_up.ronin(place / "train_dataset_1" / "a000_1"),
        "vector": lambda place: made_up.vector(place / "a"),
        "total_capture": lambda place: made_up.total_capture(place / "train" / "s1_rom1"),
    }
    folder = tmp_path / DATA_SETS[name].folder
    makers[name](folder)
    (recording,) = {path.parent for path in folder.rglob("*.*") if path.is_file()}
    change(recording)
    with pytest.raises(UserError) as told:
        load(name, tmp_path)
    assert "\n" not in str(told.value)
    return str(told.value)


def without(file):
    return lambda place: (place / file).unlink()


def with_text(file, text):
    return lambda place: (place / file).write_text(text)


def with_arrays(file, arrays):
    return lambda place: made_up.write_hdf5(place / file, arrays)


def with_field(name, value):
    def change(place):
        path = place / "info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


def with_rows(file, name, rows):
    """The same array with another number of rows."""

    def change(place):
        with h5py.File(place / file, "a") as arrays:
            values = np.resize(arrays[name], (rows, *arrays[name].shape[1:]))
            del arrays[name]
            arrays[name] = values

    return change


TIME = np.arange(4.0)
RESKIN, KINOVA, TOUCH = "reskin_sensor_values.h5", "kinova_cartesian_states.h5", "touch_sensor_values.h5"
XELA = {f"{part}_sensor_values": np.ones((4 - (part == "fingertip"), 2)) for part in ("finger", "fingertip", "palm")}


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("marker_writing", without(RESKIN), f"{RESKIN}: no such file"),
        ("marker_writing", with_text(RESKIN, "no"), f"{RESKIN}: no HDF5 file, or a damaged one"),
        ("marker_writing", with_arrays(RESKIN, {"values": TIME}), f"{RESKIN}: no data set timestamps, sensor_values"),
        (
            "marker_writing",
            with_arrays(RESKIN, {"timestamps": TIME, "sensor_values": np.ones((4, 15))}),
            "got times [4] and values [4, 15], expected (n,) and (n, 30)",
        ),
        (
            "marker_writing",
            with_arrays(RESKIN, {"timestamps": TIME[::-1], "sensor_values": np.ones((4, 30))}),
            "got times that go backwards, first behind reading 0",
        ),
        (
            "marker_writing",
            with_arrays(RESKIN, {"timestamps": TIME, "sensor_values": np.full((4, 30), np.nan)}),
            "got a value that is not finite",
        ),
        (
            "marker_writing",
            with_arrays(RESKIN, {"timestamps": TIME, "sensor_values": np.ones((4, 30))}),
            "sensors and targets share 0.0 s, expected at least 1 s",
        ),
        (
            "marker_writing",
            with_arrays(KINOVA, {"timestamps": TIME, "positions": np.ones((4, 2)), "orientations": np.ones((4, 4))}),
            "got positions [4, 2] and orientations [4, 4], expected (n, 3) and (n, 4)",
        ),
        ("ronin", with_text("info.json", "{}"), "info.json: no field imu_init_gyro_bias"),
        ("ronin", with_text("info.json", "{"), "info.json: no JSON file"),
        ("ronin", with_field("imu_acce_bias", [1, 2]), "info.json: got imu_acce_bias [1, 2], expected 3 numbers"),
        ("ronin", with_field("start_calibration", "x"), "got start_calibration 'x', expected 4 numbers"),
        ("ronin", with_field("start_calibration", [0, 0, 0, 0]), "info.json: got an orientation that is no quaternion"),
        ("ronin", with_field("imu_acce_scale", ["1", "1", "1"]), "got imu_acce_scale ['1', '1', '1'], expected 3"),
        ("ronin", with_field("ekf_ori_error", [[1], [2, 3]]), "got ekf_ori_error [[1], [2, 3]], expected a number"),
        ("ronin", with_field("imu_init_gyro_bias", [0, float("nan"), 0]), "got imu_init_gyro_bias [0, nan, 0]"),
        ("ronin", with_rows("data.hdf5", "synced/acce", 7), "data.hdf5: got synced/acce [7, 3], expected ["),
        ("ronin", with_rows("data.hdf5", "synced/game_rv", 7), "data.hdf5: got synced/game_rv [7, 4], expected ["),
        ("ronin", with_field("start_frame", -1), "info.json: got start_frame -1, expected one of"),
        ("ronin", with_field("start_frame", 10**6), "info.json: got start_frame 1000000, expected one of"),
        ("vector", with_text("gt.txt", "a\nb\n1 2 3\n"), "gt.txt: line 3 has 3 numbers, expected 8"),
        ("vector", with_text("gt.txt", "a\nb\n1 2 x\n"), "gt.txt: line 3 holds something that is no number: '1 2 x'"),
        ("vector", with_text("imu.txt", "a\n"), "imu.txt: got no numbers behind 3 lines of header"),
        ("total_capture", with_text("imu.txt", "13 2\n1\n"), "imu.txt: got 2 lines, expected 29"),
        ("total_capture", with_text("imu.txt", "x\n"), "imu.txt: line 1 is 'x', expected the numbers of sensors"),
        ("total_capture", with_text("imu.txt", "13 1\n1\n" + 13 * "\n"), "imu.txt: frame 0 has nothing of Head"),
        ("total_capture", with_text("calib_imu_ref.txt", "13\n"), "calib_imu_ref.txt: no orientation of Head"),
        ("total_capture", with_text("calib_imu_ref.txt", "13\nHead 0 0 0 x\n"), "an orientation that is no quaternion"),
        (
            "total_capture",
            with_text("gt_skel_gbl_pos.txt", "a\n" + 2 * (63 * "nan " + "\n")),
            "value that is not finite",
        ),
        ("total_capture", with_text("gt_skel_gbl_ori.txt", "a\n" + 84 * "0 " + "\n"), "first orientation that is no"),
        ("joystick_control", with_arrays(TOUCH, {"timestamps": TIME, **XELA}), "got parts of [4, 3, 4] readings"),
    ],
)
def test_another_format_is_told_in_one_line(tmp_path, name, change, told):
    assert told in broken(tmp_path, name, change)


def test_absent_sets_are_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'vektor'; nearest: vector"):
        load("vektor", tmp_path)
    for name, data_set in DATA_SETS.items():
        with pytest.raises(UserError, match="no such folder; the layout is in experiments/hiss/README.md"):
            load(name, tmp_path)
        (tmp_path / data_set.folder).mkdir()
        with pytest.raises(UserError, match="no folder"):
            load(name, tmp_path)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py: pip install 'lightnet-lab\[hdf5\]'"):
        read_hdf5(tmp_path / "a.h5", ("time",))
