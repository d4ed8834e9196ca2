"""Other devices: a checkpoint moves between meshes, and a fixed global batch gives the same training on all of them.

What is summed in another order differs by rounding. A mean over n numbers is off by at most about n roundings, relative
to the mean of their absolute values, and each update hands its error on; so the losses of T updates of n examples are
held to n T epsilon. Two runs of one program on the same devices have no such allowance.
"""

import shutil

import numpy as np
import pytest

from tests.reliability.trainee import BATCH, STEPS

EPSILON = float(np.finfo(np.float32).eps)
# Eight devices split the batch in 4, parameters in 2 x 2.
MESHES = {
    8: {"data": 2, "fsdp": 2, "tensor": 2},
    4: {"data": 1, "fsdp": 2, "tensor": 2},
    1: {},
}
FLOAT32 = {"precision": "float32", "device_batch": 0}
SAVED = 4

pytestmark = pytest.mark.slow


def job(name: str, devices: int, **settings) -> dict:
    """A training in float32, with batch statistics and dropout."""
    return {"folder": name, "settings": {**FLOAT32, "mesh": MESHES[devices], **settings}}


def plain(name: str, **settings) -> dict:
    """A training in float32 without them: each microbatch has its own statistics and its own noise."""
    return {"folder": name, "stateful": False, "settings": {**FLOAT32, **settings}}


@pytest.fixture(scope="session")
def moved(trainings) -> None:
    """Interrupted on 8 devices, continued on 4 and on 1; and short trainings on 1, 2 and 4."""
    done = trainings.process({**job("on 8, to be moved", 8), "terminate_at": SAVED - 1}, devices=8)
    assert done.returncode == 75, done.stderr
    for devices in (8, 4, 1):
        shutil.copytree(trainings.folder / "on 8, to be moved", trainings.folder / f"moved to {devices}")
    jobs = {
        8: [job("moved to 8", 8), job("on 8", 8)],
        4: [job("moved to 4", 4), plain("4 devices")],
        2: [plain("2 devices")],
        1: [job("moved to 1", 1), *(plain(f"{parts} parts", device_batch=BATCH // parts) for parts in (1, 2, 4))],
    }
    every = trainings.processes(*jobs.values(), devices=list(jobs))
    assert [done.returncode for done in every] == [0] * len(jobs), [done.stderr for done in every]


def losses(trainings, name: str) -> np.ndarray:
    return np.array([[row["loss"], row["gradient_norm"]] for row in trainings.rows(name) if row["split"] == "train"])


@pytest.mark.parametrize("devices", MESHES)
def test_a_checkpoint_comes_back_bit_for_bit_on_fewer_devices(trainings, moved, devices):
    """Where a training begins is compared with the state that the eight devices had."""
    expected, found = trainings.state("on 8, to be moved", "last"), trainings.state(f"moved to {devices}", "start")
    assert int(found["step"]) == SAVED and set(found) == set(expected)
    assert not [leaf for leaf in found if found[leaf].tobytes() != expected[leaf].tobytes()]


@pytest.mark.parametrize("devices", MESHES)
def test_it_goes_on_with_the_same_batches_to_the_same_losses(trainings, moved, devices):
    name = f"moved to {devices}"
    assert trainings.read(name) == trainings.read("on 8")
    assert [row["step"] for row in trainings.rows(name) if row["split"] == "train"] == list(range(1, STEPS + 1))
    tolerance = 0 if devices == 8 else STEPS * BATCH * EPSILON
    np.testing.assert_allclose(losses(trainings, name), losses(trainings, "on 8"), rtol=tolerance)
    np.testing.assert_array_equal(losses(trainings, name)[:SAVED], losses(trainings, "on 8")[:SAVED])


@pytest.mark.parametrize("name", ["2 parts", "4 parts", "2 devices", "4 devices"])
def test_accumulation_and_devices_change_rounding_alone(trainings, moved, name):
    assert trainings.read(name) == trainings.read("1 parts")
    tolerance = STEPS * BATCH * EPSILON
    np.testing.assert_allclose(losses(trainings, name), losses(trainings, "1 parts"), rtol=tolerance)
