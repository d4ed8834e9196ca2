"""Ring attention on eight virtual devices against attention to all pairs on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def on_eight_devices(*words, **settings):
    devices = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices, **settings}
    command = [sys.executable, "-m", "tests.lightnet.ring_on_mesh", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout == "ok\n", done.stdout + done.stderr


@pytest.mark.slow
def test_the_mixer_is_the_same_on_a_mesh():
    on_eight_devices("mixer", "", JAX_DISABLE_MOST_OPTIMIZATIONS="1")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.exhaustive)])
def test_values_and_gradients_are_those_of_all_pairs(dtype):
    settings = {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}
    on_eight_devices("equal_to_all_pairs", dtype, JAX_DISABLE_MOST_OPTIMIZATIONS="1", **settings)


@pytest.mark.slow
def test_memory_of_a_device_is_below_that_of_its_scores():
    on_eight_devices("memory", "")
