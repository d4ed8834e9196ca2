"""SIGTERM: a machine is about to be taken away, so save and leave with a status that says so."""

import functools
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from experiments.distributed import is_one_of_several, is_primary

STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command will succeed later


class Preempted(SystemExit):
    """SIGTERM arrived; ends the process with status 75 unless it is caught.

    Attributes:
        step: completed updates of the training that was saved; None if there was nothing to save.
    """

    def __init__(self, step: int | None = None) -> None:
        """Carry the exit status."""
        super().__init__(STATUS)
        self.step = step


class Notice:
    """Whether SIGTERM has arrived.

    While a training runs the signal is only noted: the loop asks at every step, and saves before it leaves. Otherwise
    there is nothing to save, and the signal raises `Preempted` at once.
    """

    def __init__(self) -> None:
        """Nothing has arrived."""
        self.given = False
        self.training = False
        self._asked: Any = None

    def arrive(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle the signal; a second one does not wait for the training."""
        again, self.given = self.given, True
        if again or not self.training:
            raise Preempted

    def begin(self) -> None:
        """A training begins."""
        self.training, self._asked = True, None

    def asked_to_leave(self, _step: int) -> bool:
        """Whether to save and leave now; to be asked before each update, by all processes.

        Several processes must leave at the same step. Each puts its own notice into a small sum over all of them and
        reads it one step later, when it has long been computed, so that nobody waits.

        Returns:
            True once SIGTERM has arrived, here or in another process.
        """
        if not is_one_of_several():
            return self.given
        before, self._asked = self._asked, _sum_over_processes(self.given)
        return before is not None and int(before) > 0


_notice = Notice()


@contextmanager
def watching() -> Iterator[Notice]:
    """Handle SIGTERM inside this block; nested blocks share one handler, threads other than the main one have none.

    Yields:
        The notice.
    """
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere or signal.getsignal(signal.SIGTERM) == _notice.arrive:
        yield _notice
        return
    _notice.given = False
    before = signal.signal(signal.SIGTERM, _notice.arrive)
    try:
        yield _notice
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def training(label: str) -> Iterator[Notice]:
    """Let the training inside this block save before it leaves, and say so.

    Args:
        label: of the training.

    Yields:
        The notice, to be asked at every step.

    Raises:
        Preempted: the signal arrived when the training had nothing left to do.
    """
    with watching() as notice:
        notice.begin()
        try:
            yield notice
        except Preempted as stop:
            if stop.step is not None and is_primary():
                print(f"{label}: SIGTERM, saved after {stop.step} updates", file=sys.stderr, flush=True)
            raise
        finally:
            notice.training = False
        if notice.given:
            raise Preempted


def _sum_over_processes(flag: bool) -> Any:
    """How many processes say so, as an array that is still being computed."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), "devices")
    one_each = NamedSharding(mesh, PartitionSpec("devices"))
    flags = jax.make_array_from_process_local_data(one_each, np.full(jax.local_device_count(), flag, np.int32))
    return _summed(NamedSharding(mesh, PartitionSpec()))(flags)


@functools.cache
def _summed(everywhere: Any) -> Any:
    import jax

    return jax.jit(lambda flags: flags.sum(), out_shardings=everywhere)
