"""A profiler trace of a few steps, asked for with `--profile` on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_folder: ContextVar[Path | None] = ContextVar("profile_folder", default=None)
FIRST, LAST = 10, 20


@contextmanager
def profiling(folder: Path) -> Iterator[None]:
    """Make the first training inside this block write a trace of its steps 10 to 20 (or of all that follow step 0 when
    it is shorter) to `folder`, readable by xprof and Perfetto.
    """
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


class StepTrace:
    """Starts and stops the trace at the right steps of one training; does nothing unless asked for."""

    def __init__(self, steps: int) -> None:
        """Take the request, so that only one training is traced."""
        self.folder = _folder.get()
        self.first, self.last = (FIRST, LAST) if steps > LAST else (min(1, steps - 1), steps)
        self._running = False
        _folder.set(None)

    def at(self, step: int) -> None:
        """To be called before the step that follows `step` completed updates."""
        if self.folder is None:
            return
        import jax

        if step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        elif self._running and step >= self.last:
            self.stop()

    def stop(self) -> None:
        """End the trace if it is running."""
        if self._running:
            import jax

            jax.profiler.stop_trace()
            self._running = False
