"""A plan for four chips that are not there against closed formulas, and against a step on four virtual CPU devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.planning.planned import HIDDEN, LAYERS, LOOPED, ROWS, TURNS, VOCABULARY, WIDTH

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
COPIES, SHARDED = "data 4", "data 1 fsdp 2 tensor 2"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    pytest.importorskip("libtpu")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-m", "tests.experiments.planning.planned", str(tmp_path_factory.mktemp("plans"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_sum_in_a_loop_is_counted_for_every_turn(found):
    # Each of four chips sends 3/4 of its part of the sum, and 3/4 of what has been summed.
    assert found["summed"] == [["all-reduce", 4, 1, TURNS, TURNS * 2 * 0.75 * ROWS * ROWS * 4, 0.0]]


def test_a_slice_may_be_smaller_than_a_host(found):
    # A chip of tpu7x is two devices.
    assert found["smaller than a host"] == [1, 2, 2]


def test_an_axis_of_the_torus_is_cut_where_a_mesh_asks_for_it(found):
    assert found["torus"] == [64, 1, 2, 1]


def test_copies_of_a_model_sum_their_gradients_and_send_nothing_else(found):
    planned = found[COPIES]["plan"]
    # The embedding is the output kernel, too: the gradients of its two uses are summed together.
    numbers = planned["parameters"]
    assert {row["kind"] for row in _rows(planned)} == {"all-reduce"}
    assert sum(row["bytes"] for row in _rows(planned)) == pytest.approx(2 * 0.75 * 4 * numbers, rel=1e-4)
    # On v5e 90 GB/s, and nothing that computes takes as long.
    assert planned["seconds"]["step"] == pytest.approx(2 * 0.75 * 4 * numbers / 90e9, rel=1e-4)


def test_chips_of_two_devices_sum_gradients_over_all_devices(found):
    planned = found["two devices per chip"]
    assert (planned["chips"], planned["devices"]) == (4, 8)
    numbers = planned["parameters"]
    assert sum(row["bytes"] for row in _rows(planned)) == pytest.approx(2 * 7 / 8 * 4 * numbers, rel=1e-4)


def test_slices_send_each_other_one_sum_of_gradients_and_gather_within(found):
    planned = found["two slices"]
    outside = {row["kind"]: row["outside"] for row in _rows(planned) if row["outside"]}
    # Each chip has a quarter of the sums, but for kernels that XLA sums as a whole.
    quarter = 2 * 0.5 * (planned["parameters"] + VOCABULARY * WIDTH)
    assert set(outside) == {"all-reduce"} and quarter <= outside["all-reduce"] < 2 * quarter
    assert all(row["slices"] == 1 for row in _rows(planned) if row["kind"] == "all-gather")


def test_a_sharded_model_gathers_its_parameters(found):
    kinds = {row["kind"] for row in _rows(found[SHARDED]["plan"])}
    assert {"all-reduce", "all-gather"} <= kinds
    assert {row["group"] for row in _rows(found[SHARDED]["plan"])} <= {2, 4}


@pytest.mark.parametrize("sizes", [COPIES, SHARDED])
def test_operations_and_bytes_of_arguments_and_outputs(found, sizes):
    planned, executed = found[sizes]["plan"], found[sizes]["executed"]
    assert planned["flops"] == pytest.approx(found["formula"], rel=0.03)
    for kind in ("arguments", "outputs"):
        assert planned["memory"][kind] == pytest.approx(executed[kind], rel=0.01)


@pytest.mark.parametrize("model", ["looped", "mamba"])
def test_operations_and_bytes_of_a_loop_over_blocks_and_of_another_model(found, model):
    planned, executed = found[model]["plan"], found[model]["executed"]
    assert planned["flops"] == pytest.approx(found[model]["formula"], rel=0.03)
    assert (planned["repeated"] > 0) == (model == "looped")
    for kind in ("arguments", "outputs"):
        assert planned["memory"][kind] == pytest.approx(executed[kind], rel=0.01)


def test_blocks_in_a_loop_are_gathered_twice_each_over_fsdp(found):
    # In bfloat16, as a TPU multiplies: forward, and once for what is computed again and the backward pass.
    gathered = [row for row in _rows(found["looped"]["plan"]) if row["kind"] == "all-gather"]
    numbers = LOOPED * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN) + VOCABULARY * WIDTH
    assert {row["group"] for row in gathered} == {2}
    assert sum(row["bytes"] for row in gathered) == pytest.approx(2 * numbers * 2 / 2, rel=0.01)


def test_parameters_are_those_of_the_model(found):
    matrices = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN) + VOCABULARY * WIDTH
    assert matrices < found[COPIES]["plan"]["parameters"] < 1.01 * matrices


def test_a_plan_is_kept_and_what_is_not_possible_told_in_one_line(found):
    assert found["kept"]
    batch, mesh, memory, shape = found["refused"]
    assert batch.startswith("train.batch_size: got 6, expected a multiple of 4")
    assert mesh.startswith("mesh: data 3") and "4 devices" in mesh
    assert memory.startswith("transformer on v5e:2x2, data 4") and "exceeds available HBM" in memory
    assert shape.startswith("topology: got 'v5e:3x3', which is no shape of a slice (") and "install" not in shape


def _rows(planned):
    """Collectives, but for scalars."""
    names = ("kind", "group", "slices", "calls", "bytes", "outside")
    rows = [dict(zip(names, row, strict=True)) for row in planned["collectives"]]
    return [row for row in rows if row["bytes"] + row["outside"] > 1000]
