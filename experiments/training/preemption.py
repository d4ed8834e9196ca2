"""SIGTERM: a machine is about to be taken away, so save and leave with a status that says so."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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

    def arrive(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle the signal; a second one does not wait for the training."""
        again, self.given = self.given, True
        if again or not self.training:
            raise Preempted


_notice = Notice()


@contextmanager
def watching() -> Iterator[Notice]:
    """Handle SIGTERM inside this block; nested blocks share one handler.

    Threads other than the main one cannot handle signals. With several processes the runtime of JAX takes the signal,
    because all of them have to leave at the same step.

    Yields:
        The notice.
    """
    elsewhere = threading.current_thread() is not threading.main_thread() or is_one_of_several()
    if elsewhere or signal.getsignal(signal.SIGTERM) == _notice.arrive:
        yield _notice
        return
    _notice.given = False
    before = signal.signal(signal.SIGTERM, _notice.arrive)
    try:
        yield _notice
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def training(label: str) -> Iterator[Notice]:
    """Let the training inside this block save before it leaves, and say so.

    Args:
        label: of the training.

    Yields:
        The notice.

    Raises:
        Preempted: the signal arrived when the training had nothing left to do.
    """
    with watching() as notice:
        notice.training = True
        try:
            yield notice
        except Preempted as stop:
            if stop.step is not None and is_primary():
                told = f"{label}: SIGTERM, saved after {stop.step} updates"
                print(told, file=sys.stderr, flush=True)
            raise
        finally:
            notice.training = False
        if notice.given:
            raise Preempted


def asked_to_leave(notice: Notice, step: int) -> bool:
    """Whether to save and leave before the update after `step`; all processes get the same answer.

    Args:
        notice: from `training`.
        step: completed updates.

    Returns:
        True once SIGTERM has arrived, here or in another process.
    """
    if not is_one_of_several():
        return notice.given
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
