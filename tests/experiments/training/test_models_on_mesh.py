"""Every kind of model gives the same loss and gradients on any mesh of eight virtual devices as on one device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.test_mixers import MIXERS
from tests.experiments.training.models_on_mesh import EVERY_SHAPE, MIXED, SHAPES, build

ROOT = Path(__file__).parents[3]
# Eight devices of two cores wait for each other longer than XLA expects.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"


def on_eight_devices(*words):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {PATIENT}",
    }
    command = [sys.executable, "-m", "tests.experiments.training.models_on_mesh", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.stdout == "ok\n", done.stdout + done.stderr


def test_all_meshes_of_eight_devices_and_every_kind_of_model_are_there():
    assert len(SHAPES) == 20 and set(MIXED) <= set(SHAPES)
    assert all(callable(loss) for _, loss in map(build, [*MIXERS, "distillation"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*MIXERS, "distillation"} - {*EVERY_SHAPE}))
def test_four_mixed_meshes(name):
    on_eight_devices(name, "mixed")


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EVERY_SHAPE)
def test_all_twenty_meshes(name):
    on_eight_devices(name, "all")
