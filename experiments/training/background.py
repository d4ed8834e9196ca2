"""Failures in the threads of the libraries that write checkpoints and metrics."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def failures_raised() -> Iterator[None]:
    """Raise what a background thread inside this block raised, instead of letting it scroll by on the terminal.

    Orbax and TensorBoard write in threads of their own. Left alone, a full disk there prints a traceback per thread
    while the training goes on. If the block itself fails, it is for the same reason, and its own exception is enough.
    """
    failures: list[threading.ExceptHookArgs] = []
    already = set(threading.enumerate())
    before, threading.excepthook = threading.excepthook, failures.append
    # Orbax also logs each exception that it raises again in `wait_until_finished`.
    logger, repeated = logging.getLogger("absl"), _FromOrbax()
    logger.addFilter(repeated)
    try:
        yield
    except Exception:
        # The threads that failed with it may still be on their way out.
        deadline = time.monotonic() + 2
        for thread in set(threading.enumerate()) - already:
            with suppress(RuntimeError):  # it is listed a moment before it can be joined
                thread.join(max(0.0, deadline - time.monotonic()))
        # What Orbax had begun beside the write that failed is reported when it is collected, later than this block.
        logging.getLogger("asyncio").addFilter(_is_not_an_abandoned_task)
        raise
    finally:
        threading.excepthook = before
        logger.removeFilter(repeated)
    if failures and failures[0].exc_value is not None:
        raise failures[0].exc_value


class _FromOrbax(logging.Filter):
    """Drops errors logged by Orbax."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _is_not_an_abandoned_task(record: logging.LogRecord) -> bool:
    return "Task exception was never retrieved" not in record.getMessage()
