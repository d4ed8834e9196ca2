"""A function called in a process of its own that has several virtual CPU devices.

How many a process has is fixed once JAX is in use, and what needs eight must run beside results that need one. The peak
memory of such a process is that of the one call.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def on_virtual_devices(count: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where JAX sees so many CPU devices, all of them parts of one new process.

    Args:
        count: of devices.
        function: of a module, so that the process can import it.
        *arguments: which can be pickled.

    Returns:
        What the function returns, which can be pickled too.

    Raises:
        Exception: what the function raises.
        BrokenProcessPool: the process was killed, for memory perhaps.

    Example:
        >>> import jax
        >>> on_virtual_devices(2, jax.device_count)
        2
    """
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=start, initializer=_begin, initargs=(count,)) as process:
        return process.submit(function, *arguments).result()


def peak_memory() -> int:
    """Most bytes that this process has held in memory at once.

    Example:
        >>> peak_memory() > 2**20
        True
    """
    # The peak that getrusage tells survives exec on Linux, so that it may be that of whoever began the process.
    status = Path("/proc/self/status")
    of_program = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M) if status.exists() else None
    if of_program:
        return 1024 * int(of_program[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _begin(count: int) -> None:
    """Set the devices, leave Ctrl-C to the parent, and never outlive it."""
    set_before = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in set_before if not flag.startswith("--xla_force_host_platform_device_count")]
    # Devices that share few cores wait for each other longer than XLA expects.
    os.environ["XLA_FLAGS"] = " ".join(["--xla_cpu_collective_call_terminate_timeout_seconds=600", *kept])
    import jax

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
