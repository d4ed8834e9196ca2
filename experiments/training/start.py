"""Where a training starts: its own checkpoint, one of another run, weights of another run, or from nothing."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from experiments.distributed import is_primary
from experiments.errors import UserError
from experiments.files import as_path, to_plain
from experiments.runs import allowed_mismatches, differences
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import TrainConfig
from experiments.training.update import TrainState

# Where a training runs, when it looks and what it leaves behind: none of these changes an update, but for rounding.
_FREE = ("mesh", "workers", "device_batch", "remat", "checkpoint", "eval_every", "max_skipped")


@dataclass(frozen=True)
class Origin:
    """Where a training without checkpoints of its own begins.

    Attributes:
        resume_from: run, training or checkpoint folder whose state, data position and counters are taken over; metrics
            and the count towards an early stop begin there anew.
        init_from: the same, of which only the weights are taken: the averaged ones if there is an average.
        run_dir: run folder of the trainings that begin; a run that holds several finds each in the same place there.
    """

    resume_from: str | Path | None = None
    init_from: str | Path | None = None
    run_dir: str | Path | None = None


_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


@contextmanager
def origin(
    *, resume_from: str | Path | None = None, init_from: str | Path | None = None, run_dir: str | Path | None = None
) -> Iterator[None]:
    """Begin the trainings inside this block as `Origin` says, unless they have checkpoints of their own.

    Args:
        resume_from: see `Origin`.
        init_from: see `Origin`.
        run_dir: see `Origin`.
    """
    token = _origin.set(Origin(resume_from, init_from, run_dir))
    try:
        yield
    finally:
        _origin.reset(token)


@dataclass
class Position:
    """Where the loop stands between two updates; all but `saved` is in a checkpoint.

    Attributes:
        state: parameters, optimizer and so on.
        step: completed updates, as in the state.
        examples: of the global order, consumed so far.
        seconds: of training.
        pending: what the last update reported, which is logged only after the next; as plain numbers.
        best: name and smallest value so far of the metric whose best state is kept, and the step of that state.
        lowest: smallest value so far of the metric that can end the training.
        stale: evaluations since then.
        began: updates that were completed elsewhere, before the metrics of this training begin.
        evaluated: whether the state was evaluated, if that was due.
        saved: whether the state was saved.
    """

    state: TrainState
    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    pending: Any = None
    best: list[Any] | None = None
    lowest: float | None = None
    stale: int = 0
    began: int = 0
    evaluated: bool = False
    saved: bool = False

    def counters(self) -> dict[str, Any]:
        """All but the state, for JSON."""
        names = ("step", "examples", "seconds", "pending", "best", "lowest", "stale", "began", "evaluated")
        return {name: getattr(self, name) for name in names}


def binding(config: TrainConfig, data: str, seed: int) -> dict[str, Any]:
    """What a checkpoint is bound to: a training continues only as the one that it was begun as.

    Args:
        config: of the training.
        data: hash of the data and its order.
        seed: of initialisation, order and keys.

    Returns:
        The settings that decide what is computed, as plain values.

    Example:
        >>> sorted(binding(TrainConfig(), "ab", 0))[:4]
        ['batch_size', 'data', 'ema_decay', 'optimizer']
    """
    settings = {name: value for name, value in to_plain(config).items() if name not in _FREE}
    return {**settings, "data": data, "seed": seed}


def begin(
    checkpoints: Checkpoints,
    folder: epath.Path,
    create: Callable[[], TrainState],
    shapes: TrainState,
    shardings: Any,
    bound: Mapping[str, Any],
    label: str,
) -> Position:
    """The position to start from: own checkpoint, `resume_from`, `init_from`, scratch, the first that there is.

    Args:
        checkpoints: of the training itself.
        folder: of the training.
        create: makes the first state.
        shapes: of the state.
        shardings: of the state.
        bound: `binding` of the training.
        label: for messages.

    Returns:
        The position.

    Raises:
        UserError: checkpoints are there and none can be read, or they belong to another training.
    """
    given = _origin.get() or Origin()
    if restored := checkpoints.restore(shapes, shardings):
        position = _continued(restored, bound, checkpoints.folder, label)
        if position.best is not None and position.best[0] == checkpoints.best_metric:
            _, value, step = position.best
            checkpoints.keep_best(step, value)
        return position
    if given.resume_from is not None:
        source, step = _locate(given.resume_from, folder, given.run_dir)
        with closing(Checkpoints(source, read_only=True)) as other:
            restored = other.restore(shapes, shardings, step)
        if restored is None:
            raise UserError(f"resume_from: {source} holds no checkpoint")
        # Its last update belongs to the metrics there; the state is evaluated and judged anew, where that is due.
        taken = _continued(restored, bound, source, label)
        return Position(taken.state, taken.step, taken.examples, taken.seconds, began=taken.step)
    state = create()
    if given.init_from is not None:
        source, step = _locate(given.init_from, folder, given.run_dir)
        names = ("params", "collections")
        like, place = ({name: getattr(tree, name) for name in names} for tree in (shapes, shardings))
        with closing(Checkpoints(source, read_only=True)) as other:
            weights = other.restore_params(like, place, step, ema=True)
        average = jax.tree.map(jnp.copy, weights["params"]) if state.ema else {}
        state = state._replace(**weights, ema=average)
        _say(f"{label}: weights from {source}")
    return Position(state)


def _continued(
    restored: tuple[TrainState, dict[str, Any]], bound: Mapping[str, Any], source: Any, label: str
) -> Position:
    state, counters = restored
    _check(counters.pop("binding"), bound, source, label)
    _say(f"{label}: going on from {source} after {counters['step']} updates")
    return Position(state, **counters, saved=True)


def _check(was: Mapping[str, Any], now: Mapping[str, Any], source: Any, label: str) -> None:
    if was["seed"] != now["seed"]:
        raise UserError(f"{source} holds a training of seed {was['seed']}, not {now['seed']}")
    for change in differences(was, now):
        field, told = change["field"], f"{change['field']} was {change['was']!r} and is now {change['now']!r}"
        if not _is_allowed(field, allowed_mismatches()):
            raise UserError(f"{source} holds another training: {told}; allow it with --allow_mismatch {field}")
        _say(f"{label}: {told}, as allowed")


def _is_allowed(field: str, allowed: Collection[str]) -> bool:
    """The settings of a training are part of a result's Config, mostly as `train`."""
    return any(name == field or name.endswith(f".{field}") for name in allowed)


def _locate(path: str | Path, folder: epath.Path, run_dir: str | Path | None) -> tuple[epath.Path, int | None]:
    """The checkpoints that a path means, and the step if it names one."""
    given = epath.Path(as_path(path))
    if given.name.isdigit() and not (given / "checkpoints").exists():
        return given.parent, int(given.name)
    inside = [given / folder.relative_to(epath.Path(as_path(run_dir)))] if run_dir is not None else []
    for candidate in [*(place / "checkpoints" for place in (*inside, given)), given]:
        if candidate.is_dir() and any(entry.name.isdigit() for entry in candidate.iterdir()):
            return candidate, None
    raise UserError(f"no checkpoints in {given}")


def say_what_is_missing(now: Position, logged: int, label: str) -> None:
    """Say so if metrics that were written before the checkpoint are gone; they cannot be computed again.

    Args:
        now: where the training goes on.
        logged: updates in its metrics.
        label: for the message.
    """
    missing = max(0, now.step - 1 - now.began) - logged
    if now.saved and missing > 0:
        _say(f"warning: {label}: the metrics of {missing} updates are gone; the training itself is whole")


def _say(line: str) -> None:
    if is_primary():
        print(line, file=sys.stderr, flush=True)
