"""A profiler trace of a few steps, asked for with `--profile` on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_folder: ContextVar[Path | None] = ContextVar("profile_folder", default=None)


@contextmanager
def profiling(folder: Path) -> Iterator[None]:
    """Trace a few steps of the first training inside this block that has any left.

    Args:
        folder: for the trace, which xprof and Perfetto read.
    """
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


class StepTrace:
    """Starts and stops the trace at the right steps of one training; does nothing unless asked for.

    It spans ten steps after ten that warm up, or all but the first of a training that has no more than twenty left.
    """

    def __init__(self, steps: int) -> None:
        """Prepare for a training of so many steps."""
        self._steps = steps
        self._folder: Path | None = None
        self._first = self._last = -1
        self._begun = self._running = False

    def at(self, step: int, state: Any) -> None:
        """To be called before the step that follows `step` completed updates, with what they led to."""
        import jax

        if not self._begun:
            self._begun = True
            self._folder = _folder.get()
            _folder.set(None)
            left = self._steps - step
            self._first, self._last = (step + 10, step + 20) if left > 20 else (step + min(1, left - 1), self._steps)
        if self._folder is not None and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step == self._last:
            jax.block_until_ready(state)
            self.stop()

    def stop(self) -> None:
        """End the trace if it is running."""
        if self._running:
            import jax

            jax.profiler.stop_trace()
            self._running = False
