"""Programs on devices that are not there: XLA makes several out of the cores of this machine, but only at its start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def on_virtual_devices(module: str, argument: Any, devices: int) -> Any:
    """Run a module in a process of its own with so many virtual devices.

    Args:
        module: its name in full; it reads JSON and prints JSON in its last line.
        argument: for it, as JSON.
        devices: how many.

    Returns:
        The JSON that it prints.

    Raises:
        RuntimeError: it ends with an error, the last lines of which are shown.
    """
    # Devices that share few cores wait for each other longer than XLA expects.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_collective_call_terminate_timeout_seconds=600"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", module]
    text = json.dumps(argument)
    done = subprocess.run(command, cwd=ROOT, env=environment, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
