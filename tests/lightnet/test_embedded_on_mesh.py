"""Rows of a table that is cut over fsdp and tensor, looked up without sending everything to everyone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
WARNING = "Involuntary full rematerialization"


def told(how):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600",
    }
    command = [sys.executable, "-m", "tests.lightnet.embedded_on_mesh", how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_gathered_rows_are_sent_to_those_who_need_them_and_nothing_else_changes():
    gathered, said = told("gathered")
    assert WARNING not in said
    assert gathered["losses"][1] == pytest.approx(gathered["losses"][0], rel=1e-5) and gathered["off"] < 1e-5
    plain, said = told("plain")
    assert WARNING in said and gathered["sent"] <= plain["sent"]
