"""Trainings that are written down instead of done, for whoever plans them.

While something is recorded, `experiments.training.loop.train` hands its arguments to the recorder and trains nothing,
and the loaders of data sets that are not here give stand-ins. One variable decides both, so what a training sees is
never a stand-in.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_RECORDER: ContextVar[Callable[..., Any] | None] = ContextVar("recorder", default=None)


def recorder() -> Callable[..., Any] | None:
    """What takes the arguments of `train` in place of it; None: trainings are trained."""
    return _RECORDER.get()


@contextmanager
def recording(take: Callable[..., Any]) -> Iterator[None]:
    """Hand every training to `take`, in this thread.

    Args:
        take: (config, task, data, seed=, label=) -> an `experiments.training.loop.Outcome`.

    Example:
        >>> with recording(print):
        ...     recorder() is print
        True
        >>> recorder()
    """
    token = _RECORDER.set(take)
    try:
        yield
    finally:
        _RECORDER.reset(token)
