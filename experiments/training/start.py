"""Where a training starts: its own checkpoint, one of another run, weights of another run, or from nothing."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from experiments.distributed import is_primary
from experiments.errors import UserError
from experiments.files import to_plain
from experiments.runs import allowed_mismatches, differences
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import TrainConfig
from experiments.training.update import TrainState

# Where a training runs and what it leaves behind; none of these changes what is computed, but for rounding.
_PLACES = ("mesh", "workers", "device_batch", "checkpoint", "eval_every", "max_skipped")


@dataclass(frozen=True)
class Origin:
    """Where a training without checkpoints of its own begins.

    Attributes:
        resume_from: run, training or checkpoint folder whose state, data position and counters are taken over.
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
    """Where the loop stands between two updates; all but `resumed` is in a checkpoint.

    Attributes:
        state: parameters, optimizer and so on.
        step: completed updates, as in the state.
        examples: of the global order, consumed so far.
        seconds: of training.
        pending: what the last update reported, which is logged only after the next; as plain numbers.
        best: smallest value so far of the metric whose best state is kept.
        lowest: smallest value so far of the metric that can end the training.
        stale: evaluations since then.
        resumed: whether it has just been read from a checkpoint of its own, so that it was evaluated and saved before.
    """

    state: TrainState
    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    pending: Any = None
    best: float | None = None
    lowest: float | None = None
    stale: int = 0
    resumed: bool = False

    def counters(self) -> dict[str, Any]:
        """All but the state, for JSON."""
        names = ("step", "examples", "seconds", "pending", "best", "lowest", "stale")
        return {name: getattr(self, name) for name in names}


def identity(config: TrainConfig, data: str, seed: int) -> dict[str, Any]:
    """What a checkpoint is bound to: a training continues only as the one that it was begun as.

    Args:
        config: of the training.
        data: hash of the data and its order.
        seed: of initialisation, order and keys.

    Returns:
        The settings that decide what is computed, as plain values.

    Example:
        >>> sorted(identity(TrainConfig(), "ab", 0))[:4]
        ['batch_size', 'data', 'ema_decay', 'optimizer']
    """
    settings = {name: value for name, value in to_plain(config).items() if name not in _PLACES}
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
        bound: `identity` of the training.
        label: for messages.

    Returns:
        The position.

    Raises:
        UserError: checkpoints are there and none can be read, or they belong to another training.
    """
    given = _origin.get() or Origin()
    if restored := checkpoints.restore(shapes, shardings):
        return _continued(restored, bound, checkpoints.folder, label)
    if given.resume_from is not None:
        source, step = _locate(given.resume_from, folder, given.run_dir)
        with closing(Checkpoints(source, read_only=True)) as other:
            restored = other.restore(shapes, shardings, step)
        if restored is None:
            raise UserError(f"resume_from: {source} holds no checkpoint")
        # Its last update is logged there; here the state that was taken over is evaluated and saved first.
        return replace(_continued(restored, bound, source, label), pending=None, resumed=False)
    state = create()
    if given.init_from is not None:
        source, step = _locate(given.init_from, folder, given.run_dir)
        names = ("params", "collections")
        like, place = ({name: getattr(tree, name) for name in names} for tree in (shapes, shardings))
        with closing(Checkpoints(source, read_only=True)) as other:
            taken = other.restore_params(like, place, step, ema=True)
        average = jax.tree.map(jnp.copy, taken["params"]) if state.ema else {}
        state = state._replace(**taken, ema=average)
        _say(f"{label}: weights from {source}")
    return Position(state)


def _continued(
    restored: tuple[TrainState, dict[str, Any]], bound: Mapping[str, Any], source: Any, label: str
) -> Position:
    state, counters = restored
    _check(counters.pop("identity"), bound, source, label)
    _say(f"{label}: going on from {source} after {counters['step']} updates")
    return Position(state, **counters, resumed=True)


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
    given = epath.Path(path)
    if given.name.isdigit():
        return given.parent, int(given.name)
    inside = [given / folder.relative_to(epath.Path(run_dir))] if run_dir is not None else []
    for candidate in [*(place / "checkpoints" for place in (*inside, given)), given]:
        if candidate.is_dir() and any(entry.name.isdigit() for entry in candidate.iterdir()):
            return candidate, None
    raise UserError(f"no checkpoints in {given}")


def _say(line: str) -> None:
    if is_primary():
        print(line, file=sys.stderr, flush=True)
