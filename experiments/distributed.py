"""Several processes that work on one run, of which the first alone decides and writes.

A process is one of several when the environment says so: LIGHTNET_PROCESS, its number from 0; LIGHTNET_PROCESSES, how
many there are; LIGHTNET_COORDINATOR, host:port where process 0 waits for the others. `run --processes N` sets them on
one machine; on several machines they are set by hand, and the same command is started on each. JAX is imported only
where there are several processes.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from experiments.errors import UserError

PROCESS, PROCESSES, COORDINATOR = "LIGHTNET_PROCESS", "LIGHTNET_PROCESSES", "LIGHTNET_COORDINATOR"
SUPERVISOR = "LIGHTNET_SUPERVISOR"
HEARTBEAT_SECONDS = 25  # silence after which a process counts as dead; JAX's default is 100
_SHUTDOWN_SECONDS = 7 * 24 * 3600  # the others wait for the first, which draws and writes, before they leave
_PR_SET_PDEATHSIG = 1


def is_primary() -> bool:
    """Whether this process writes the files of a run: the first one, or the only one.

    Returns:
        False in a process that was started with another LIGHTNET_PROCESS than 0, or met others by itself through
        `jax.distributed` and is not their first.

    Example:
        >>> is_primary()
        True
    """
    if _met_by_itself():
        return sys.modules["jax"].process_index() == 0
    return os.environ.get(PROCESS, "0") == "0"


def is_one_of_several() -> bool:
    """Whether this process is one of several, by its environment or by a call of `jax.distributed`.

    Example:
        >>> is_one_of_several()
        False
    """
    return os.environ.get(PROCESSES, "1") != "1" or _met_by_itself()


def _met_by_itself() -> bool:
    """Whether the program that calls us has met other processes; JAX is not imported to find out."""
    jax = sys.modules.get("jax")
    return jax is not None and hasattr(jax, "distributed") and jax.distributed.is_initialized()


def initialize_from_environment() -> None:
    """Meet the other processes; call before JAX computes anything. One process alone has nobody to meet.

    Raises:
        UserError: if the environment names a process, but not completely or not sensibly.
    """
    place = _place(os.environ)
    if place is None:
        return
    number, count, coordinator = place
    _end_with_supervisor()
    _keep_stdout_for_python()
    import jax

    # Its handler of SIGTERM forgets a signal that arrives between two trainings; ours does not.
    jax.config.update("jax_enable_preemption_service", False)
    local = coordinator.startswith("localhost:")
    if local:  # then no proxy stands before it, whatever the environment says
        os.environ["no_grpc_proxy"] = "localhost"  # noqa: SIM112
        jax.config.update("jax_check_proxy_envs", False)
    jax.distributed.initialize(
        coordinator,
        count,
        number,
        cluster_detection_method="deactivate",
        coordinator_bind_address=coordinator if local and number == 0 else None,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )


def first_process_says(value: bool) -> bool:
    """A decision that all processes take alike; each of them must ask.

    Args:
        value: what this process would decide.

    Returns:
        What the first process would.

    Example:
        >>> first_process_says(True)
        True
    """
    if not is_one_of_several():
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def agree(name: str, value: Any) -> None:
    """Refuse to go on unless every process has the same value; each of them must ask.

    Args:
        name: of the value, for the message.
        value: anything that has a JSON form.

    Raises:
        UserError: in every process, if the values differ.

    Example:
        >>> agree("the step to start from", 100)
    """
    if not is_one_of_several():
        return
    import numpy as np
    from jax.experimental import multihost_utils

    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    gathered = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = [number for number, other in enumerate(gathered) if not np.array_equal(other, gathered[0])]
    if others:
        told = ", ".join(map(str, others))
        raise UserError(f"the processes do not agree on {name}: process {told} has another than process 0")


def leave(status: int) -> NoReturn:
    """End this process.

    JAX makes a process that ends wait for all others. One that failed ends at once instead: the others cannot go on
    without it, and may be waiting for it elsewhere.

    Args:
        status: exit status.
    """
    if is_one_of_several() and status not in (0, 75):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _place(environment: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Number, count and coordinator; None for a process alone.

    Example:
        >>> _place({"LIGHTNET_PROCESS": "1", "LIGHTNET_PROCESSES": "2", "LIGHTNET_COORDINATOR": "localhost:99"})
        (1, 2, 'localhost:99')
    """
    given = {name: environment[name] for name in (PROCESS, PROCESSES, COORDINATOR) if name in environment}
    if not given:
        return None
    for name in (PROCESS, PROCESSES, COORDINATOR):
        if name not in given:
            raise UserError(f"{next(iter(given))} is set and {name} is not; several processes need all three")
    numbers = [given[PROCESS], given[PROCESSES]]
    if not all(number.isdecimal() for number in numbers) or int(numbers[0]) >= int(numbers[1]):
        raise UserError(f"{PROCESS}: got {numbers[0]} of {PROCESSES} {numbers[1]}, expected 0 up to the number less 1")
    return None if int(numbers[1]) == 1 else (int(numbers[0]), int(numbers[1]), given[COORDINATOR])


def _end_with_supervisor() -> None:
    """Be killed when the supervisor dies, however it does (Linux), so that no process is left behind."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):  # it died before it could be asked for
        os._exit(1)


def _keep_stdout_for_python() -> None:
    """Send what the C++ libraries print to stdout (Gloo greets there) to stderr."""
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper) or stdout.fileno() != 1:
        return
    stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(own, "w", encoding=stdout.encoding, errors=stdout.errors, buffering=1)  # noqa: SIM115
