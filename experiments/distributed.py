"""Several processes that work on one run, of which the first alone decides and writes.

A process is one of several when the environment says so. A step of Slurm with several tasks and a TPU slice with
several hosts on GKE are noticed; LIGHTNET_PROCESSES=auto asks JAX to look for any cluster that it knows, such as the
workers of a queued resource of Cloud TPU; LIGHTNET_PROCESSES=1 stays alone. Or three variables say it:
LIGHTNET_PROCESS, its number from 0; LIGHTNET_PROCESSES, how many there are; LIGHTNET_COORDINATOR, host:port where
process 0 waits for the others. `run --processes N` sets these on one machine. JAX is imported only where there are
several processes.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from itertools import count
from typing import Any, NoReturn

from experiments.errors import UserError

PROCESS, PROCESSES, COORDINATOR = "LIGHTNET_PROCESS", "LIGHTNET_PROCESSES", "LIGHTNET_COORDINATOR"
SUPERVISOR = "LIGHTNET_SUPERVISOR"
AUTO = "auto"  # in the place of the number of processes: those of the cluster that JAX finds
PATIENCE = "LIGHTNET_PATIENCE"  # seconds to wait for the others where all begin together
HEARTBEAT_SECONDS = 25  # silence after which a process counts as dead; JAX's default is 100
_PATIENCE_SECONDS = 600
# Variables that every process of a step of Slurm has; those of an allocation alone do not tell that there are several.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_SHUTDOWN_SECONDS = 7 * 24 * 3600  # the others wait for the first, which draws and writes, before they leave
_PR_SET_PDEATHSIG = 1
_MEETINGS = count()  # all processes meet in the same order


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
        UserError: if the environment names a process, but not completely or not sensibly, or there is no cluster.
    """
    meeting = _meeting(os.environ)
    if meeting is None:
        return
    patience = _patience(os.environ)
    if SUPERVISOR not in os.environ:  # the runtime aborts a process whose others do not come: this is its last line
        print(f"waiting for the other processes, at most {patience} s ({PATIENCE})", file=sys.stderr, flush=True)
    _end_with_supervisor()
    _keep_stdout_for_python()
    import jax

    # Its handler of SIGTERM forgets a signal that arrives between two trainings; ours does not.
    jax.config.update("jax_enable_preemption_service", False)
    if "coordinator_bind_address" in meeting:  # all on this machine: no proxy stands between, whatever is set
        os.environ["no_grpc_proxy"] = "localhost"  # noqa: SIM112
        jax.config.update("jax_check_proxy_envs", False)
    try:
        jax.distributed.initialize(
            **meeting,
            initialization_timeout=patience,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise UserError(f"{PROCESSES} is {AUTO}, and JAX finds no cluster here ({error})") from error


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

    wait_for_all(name)
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    gathered = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = [number for number, other in enumerate(gathered) if not np.array_equal(other, gathered[0])]
    if others:
        told = ", ".join(map(str, others))
        raise UserError(f"the processes do not agree on {name}: process {told} has another than process 0")


def wait_for_all(name: str) -> None:
    """Go on when every process is here, and not at all if one does not come; each of them must call.

    Args:
        name: of what all begin together, for the message.

    Raises:
        UserError: some were not here in time; it names them.

    Example:
        >>> wait_for_all("the first step")
    """
    if not is_one_of_several():
        return
    from jax.errors import JaxRuntimeError
    from orbax.checkpoint.multihost import get_barrier_sync_fn

    patience = _patience(os.environ)
    try:
        get_barrier_sync_fn()(key=f"{name}, {next(_MEETINGS)}", timeout_ms=1000 * patience)
    except JaxRuntimeError as error:
        # The only place where the runtime tells who is missing, one of them per line; at most the first ten.
        _, _, told = str(error).partition("timed out task names:")
        missing = re.findall(r"^(?:\S*task:)?(\d+)$", told, re.MULTILINE)
        who = f"process {', '.join(missing)}" if missing else "others"
        raise UserError(f"{name}: waited {patience} s ({PATIENCE}) for {who} in vain") from error


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


def _meeting(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None for a process alone.

    Example:
        >>> _meeting({"LIGHTNET_PROCESSES": "1", "TPU_WORKER_HOSTNAMES": "a,b"})
        >>> _meeting({"TPU_WORKER_HOSTNAMES": "a,b"})
        {'cluster_detection_method': 'gketpu'}
    """
    if PROCESSES in environment or PROCESS in environment or COORDINATOR in environment:
        if environment.get(PROCESSES) == AUTO:
            return {"cluster_detection_method": None}
        return None if environment.get(PROCESSES) == "1" else _asked(environment)
    if all(name in environment for name in _SLURM) and environment["SLURM_NTASKS"] != "1":
        return {"cluster_detection_method": "slurm"}
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    if "," in hosts or environment.get("MEGASCALE_NUM_SLICES", "1") != "1":
        return {"cluster_detection_method": "gketpu"}
    return None


def _asked(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the three variables say."""
    given = {name: environment[name] for name in (PROCESS, PROCESSES, COORDINATOR) if name in environment}
    for name in (PROCESS, PROCESSES, COORDINATOR):
        if name not in given:
            raise UserError(f"{next(iter(given))} is set and {name} is not; several processes need all three")
    numbers = [given[PROCESS], given[PROCESSES]]
    if not all(number.isdecimal() for number in numbers) or int(numbers[0]) >= int(numbers[1]):
        raise UserError(f"{PROCESS}: got {numbers[0]} of {PROCESSES} {numbers[1]}, expected 0 up to the number less 1")
    number, coordinator = int(numbers[0]), given[COORDINATOR]
    meeting: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": int(numbers[1]),
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }
    if coordinator.startswith("localhost:"):
        meeting["coordinator_bind_address"] = coordinator if number == 0 else None
    return meeting


def _patience(environment: Mapping[str, str]) -> int:
    given = environment.get(PATIENCE, str(_PATIENCE_SECONDS))
    if not given.isdecimal() or int(given) == 0:
        raise UserError(f"{PATIENCE}: got {given!r}, expected a number of seconds of at least 1")
    return int(given)


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
