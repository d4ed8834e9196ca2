"""Several slices, without any: the devices of a topology that the compiler for TPUs describes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.errors import UserError
from experiments.training.config import MeshConfig
from experiments.training.mesh import AXES, _between_slices, make_mesh

ROOT = Path(__file__).resolve().parents[3]
SLICES = """
import jax
from jax.experimental import topologies
from experiments.training.config import MeshConfig
from experiments.training.mesh import make_mesh

devices = topologies.get_topology_desc("v5e:2x2", platform="tpu", num_slices=2).devices
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices)
print(mesh.axis_names, [[device.slice_index for device in row.ravel()] for row in mesh.devices])
mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), devices)
print([[device.slice_index for device in row.ravel()] for row in mesh.devices[0]])
"""


def test_data_crosses_slices_first_and_fsdp_only_where_it_must():
    assert _between_slices([8, 1, 1, 1], 4) == [4, 1, 1, 1]
    assert _between_slices([2, 4, 2, 1], 4) == [2, 2, 1, 1]
    assert _between_slices([3, 4, 1, 1], 4) == [1, 4, 1, 1]
    with pytest.raises(UserError, match="mesh: data 2, fsdp 3 cannot be cut into the 4 slices there are"):
        _between_slices([2, 3, 4, 1], 4)


def test_devices_that_are_not_there():
    with pytest.raises(UserError, match="data 3, fsdp 1, tensor 1, sequence 1 does not multiply to the 1 devices"):
        make_mesh(MeshConfig(data=3), jax.devices()[:1])
    assert dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape) == dict.fromkeys(AXES, 1)


@pytest.mark.slow
def test_devices_of_two_slices_lie_as_their_network_does():
    pytest.importorskip("libtpu")
    environment = {
        **os.environ,
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    command = [sys.executable, "-c", SLICES]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    names, fsdp = done.stdout.splitlines()
    assert names == f"{AXES} [[0, 0, 0, 0], [1, 1, 1, 1]]"
    assert fsdp == "[[0, 0], [0, 0], [1, 1], [1, 1]]"
