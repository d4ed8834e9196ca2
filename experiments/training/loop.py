"""The training loop.

Its order is an invariant, and a test holds it with a recording fake:

    evaluate the old state -> save (state, data position, counters) -> next batch -> step -> log the previous step

The metrics of a step are fetched only after the next one has been dispatched, so the device never waits for the host.
A checkpoint carries them along, and a resumed training continues right behind the save: each step is evaluated, saved
and logged once.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from experiments.distributed import agree, is_primary
from experiments.errors import UserError
from experiments.files import write_json
from experiments.training import preemption
from experiments.training.background import failures_raised
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import TrainConfig
from experiments.training.data import DeviceBatches, examples
from experiments.training.data import identity as data_identity
from experiments.training.mesh import batch_sharding, make_mesh, state_shardings
from experiments.training.metrics import MetricsLog, Progress
from experiments.training.optimizer import make_optimizer
from experiments.training.profile import StepTrace
from experiments.training.start import Position, begin, identity
from experiments.training.task import Batch, Metrics, Task, Variables
from experiments.training.update import (
    Report,
    TrainState,
    evaluated,
    initial_state,
    leaf_names,
    make_update,
    random_stream,
    variables_of,
)


@dataclass(frozen=True)
class Outcome:
    """A finished training.

    Attributes:
        state: the last one, on the mesh.
        train: "step" and each metric of every update, as arrays; step n is the n-th update.
        evaluation: "step" and each metric of every evaluation; step n is after n updates.
        seconds: spent in steps and data, the step's compilation included, evaluation and saving not.
    """

    state: TrainState
    train: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray]
    seconds: float

    @property
    def params(self) -> Variables:
        """What the loss saw last: parameters, and mutable collections if there are any."""
        return variables_of(self.state.params, self.state.collections)


def train(
    config: TrainConfig,
    task: Task,
    data: Mapping[str, np.ndarray] | grain.MapDataset,
    folder: str | Path,
    *,
    seed: int,
    label: str = "train",
) -> Outcome:
    """Train, or go on from the newest checkpoint in `folder`, or return at once if that one is the last.

    Args:
        config: steps, batch size, optimizer, mesh, when to evaluate and save.
        task: initialisation, loss and evaluation.
        data: columns by name, drawn in an order that the seed decides; or a Grain dataset of single examples with
            random access, endless, as `experiments.training.data.examples` makes it.
        folder: for checkpoints and metrics; made if it is not there.
        seed: of the initialisation and of the keys given to the loss. Step n's key depends on (seed, n) alone.
        label: shown beside the progress.

    Returns:
        The outcome, its history complete whether or not the training was interrupted.

    Raises:
        UserError: the mesh does not fit the devices or the batch, checkpoints cannot be read or belong to another
            training, or too many updates in a row were not finite.
        Preempted: SIGTERM arrived; everything is saved.
    """
    with preemption.training(label) as notice:
        return _train(config, task, data, epath.Path(folder), seed, label, notice)


def _train(
    config: TrainConfig, task: Task, data: Any, folder: epath.Path, seed: int, label: str, notice: preemption.Notice
) -> Outcome:
    mesh = make_mesh(config.mesh)
    microbatches = _microbatches(config, mesh)
    bound = identity(config, data_identity(data), seed)
    stream = examples(data, seed=seed) if isinstance(data, Mapping) else data
    optimizer = make_optimizer(config.optimizer, config.steps, task.labels)
    with jax.set_mesh(mesh), failures_raised(), ExitStack() as opened:
        create, shardings, shapes = _initializer(task, optimizer, config, seed, mesh)
        checkpoints = opened.enter_context(closing(Checkpoints(folder / "checkpoints", config.checkpoint)))
        start = begin(checkpoints, folder, create, shapes, shardings, bound, label)
        agree("what is trained, and the step to start from", [bound, start.step])
        if start.step > config.steps:
            raise UserError(f"{folder} is at step {start.step} already, beyond the {config.steps} steps asked for")
        writes = is_primary()
        log = opened.enter_context(closing(MetricsLog(folder, start.step, resumed=start.resumed, writes=writes)))
        reader = DeviceBatches(stream, config.batch_size, batch_sharding(mesh), start.examples, config.workers)
        batches = opened.enter_context(closing(reader))
        progress = opened.enter_context(closing(Progress(label, config.steps, start.step, shown=writes)))
        update = make_update(task, optimizer, config, seed, microbatches=microbatches, shardings=shardings)
        loop = Loop(
            config,
            task.evaluate,
            update,
            batches,
            checkpoints,
            log,
            progress,
            leave=partial(preemption.asked_to_leave, notice),
            folder=folder,
            leaves=leaf_names(shapes),
            rows=_row_names(data, seed),
            identity=bound,
        )
        end = loop.run(start)
    return Outcome(end.state, log.columns("train"), log.columns("eval"), end.seconds)


def _row_names(data: Any, seed: int) -> Callable[[range], list[int]]:
    """From indices into the global order to rows of the columns; of a dataset, the index itself is the name."""
    if not isinstance(data, Mapping):
        return list
    rows = examples({"row": np.arange(len(next(iter(data.values()))))}, seed=seed)
    return lambda indices: [int(rows[index]["row"]) for index in indices]


def _microbatches(config: TrainConfig, mesh: Mesh) -> int:
    """Parts of a batch that the devices take one after the other."""
    copies = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % copies:
        raise UserError(
            f"train.batch_size: got {config.batch_size}, expected a multiple of {copies}, "
            "the number of devices along the mesh axes data and fsdp"
        )
    share = config.batch_size // copies
    largest = min(config.device_batch or share, share)
    # Parts of equal size: the fewest that fit.
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= largest)


def _initializer(
    task: Task, optimizer: optax.GradientTransformation, config: TrainConfig, seed: int, mesh: Mesh
) -> tuple[Callable[[], TrainState], Any, Any]:
    """How to create the first state right into its shardings, those shardings, and the shapes."""

    def create() -> TrainState:
        return initial_state(task.init(random_stream(seed, "initialisation")), optimizer, config.ema_decay > 0)

    boxed = jax.eval_shape(create)
    shardings = state_shardings(boxed, mesh)
    jitted = jax.jit(lambda: nn.meta.unbox(create()), out_shardings=shardings)
    return jitted, shardings, nn.meta.unbox(boxed)


@dataclass
class Loop:
    """The loop, its parts given from outside so that a test can record in which order it calls them.

    Attributes:
        config: steps, and when to evaluate, save and stop.
        evaluate: variables -> scalars, or None.
        update: (state, batch) -> (state, report).
        batches: iterator over batches with `position`.
        checkpoints: has `save` and `check`.
        log: has `write` and `sync`.
        progress: has `advance`.
        leave: completed updates -> whether to save and leave.
        folder: where a training that ends for values that are not finite says which ones.
        leaves: names that `Report.bad_leaf` counts.
        rows: indices into the global order -> what the data calls these examples.
        identity: what checkpoints are bound to.
    """

    config: TrainConfig
    evaluate: Callable[[Variables], Metrics] | None
    update: Callable[[TrainState, Batch], tuple[TrainState, Report]]
    batches: Any
    checkpoints: Any
    log: Any
    progress: Any
    leave: Callable[[int], bool] = lambda step: False
    folder: epath.Path | None = None
    leaves: Sequence[str] = ()
    rows: Callable[[range], list[int]] = list
    identity: Mapping[str, Any] = field(default_factory=dict)

    def run(self, now: Position) -> Position:
        """Go on from `now` to the last step; `now` is advanced in place."""
        trace, clock = StepTrace(self.config.steps), Stopwatch(now.seconds)
        try:
            while True:
                leaving = self.leave(now.step)
                if not now.resumed:
                    self._evaluate_and_save(now, clock, leaving)
                now.resumed = False
                if self._is_last(now):
                    break
                if leaving:
                    raise preemption.Preempted(now.step)
                trace.at(now.step, now.state)
                now.state, report = self.update(now.state, next(self.batches))
                self._log_previous(now)
                now.step, now.examples, now.pending = now.step + 1, self.batches.position, report
                self.checkpoints.check()
        finally:
            trace.stop()
        self._log_previous(now)
        return now

    def _is_last(self, now: Position) -> bool:
        stopped = bool(self.config.stop_metric) and now.stale >= self.config.patience
        return now.step == self.config.steps or stopped

    def _evaluate_and_save(self, now: Position, clock: "Stopwatch", leaving: bool) -> None:
        end = now.step == self.config.steps
        evaluate = self.evaluate if _due(now.step, self.config.eval_every, end) else None
        saving = leaving or end or (now.step > 0 and _due(now.step, self.config.checkpoint.every, False))
        if evaluate is None and not saving:
            return
        jax.block_until_ready(now.state)
        now.seconds = clock.pause()
        best = False
        if evaluate is not None:
            values = _numbers(evaluate(evaluated(now.state)))
            self.log.write(now.step, "eval", values)
            best = self._judge(now, values)
        if saving or best or self._is_last(now):
            self._save(now, best)
        clock.resume()

    def _judge(self, now: Position, values: Mapping[str, float]) -> bool:
        """Count evaluations without progress; returns whether this state is the best so far."""
        if metric := self.config.stop_metric:
            value = _named(values, "stop_metric", metric)
            better = now.lowest is None or value < now.lowest
            now.lowest, now.stale = (value, 0) if better else (now.lowest, now.stale + 1)
        if not (metric := self.config.checkpoint.best):
            return False
        value = _named(values, "checkpoint.best", metric)
        best = math.isfinite(value) and (now.best is None or value < now.best)
        now.best = value if best else now.best
        return best

    def _save(self, now: Position, best: bool) -> None:
        # The rows up to here must be on disk before a checkpoint says that they were written.
        self.log.sync()
        if now.pending is not None:
            now.pending = _plain(now.pending)
            if now.pending["skipped_in_a_row"] > self.config.max_skipped:
                self._log_previous(now)
        counters = {**now.counters(), "identity": dict(self.identity)}
        self.checkpoints.save(now.step, now.state, counters, best=now.best if best else None)

    def _log_previous(self, now: Position) -> None:
        if now.pending is None:
            return
        report = now.pending = _plain(now.pending)
        self.log.write(now.step, "train", report["metrics"])
        self.progress.advance(report["metrics"])
        if report["bad_leaf"] >= 0:
            self.log.write(now.step, "skipped", self._skipped(now, 1))
            self._refuse_too_many_skipped(now)

    def _skipped(self, now: Position, count: int) -> dict[str, Any]:
        """The last so many updates, by the examples that they saw and the first value that was not finite."""
        size = self.config.batch_size
        return {
            "leaf": self.leaves[now.pending["bad_leaf"]],
            "first_example": now.examples - count * size,
            "examples": count * size,
        }

    def _refuse_too_many_skipped(self, now: Position) -> None:
        """End the training; its state is the one before these updates, and so is its newest checkpoint."""
        count = now.pending["skipped_in_a_row"]
        if count <= self.config.max_skipped:
            return
        told = {"updates": [now.step - count + 1, now.step], **self._skipped(now, count)}
        told["rows"] = self.rows(range(told["first_example"], now.examples))
        if self.folder is not None and is_primary():
            write_json(self.folder / "not_finite.json", told)
        raise UserError(
            f"{count} updates in a row were not finite ({told['leaf']}), the last of them update {now.step}: they were "
            f"skipped and nothing is lost; {self.folder}/not_finite.json names their examples"
        )


class Stopwatch:
    """Seconds of training, not counting evaluation and saving."""

    def __init__(self, seconds: float) -> None:
        """Go on from `seconds`."""
        self._began = time.monotonic() - seconds

    def pause(self) -> float:
        """Stop; return the seconds so far."""
        self._paused = time.monotonic()
        return self._paused - self._began

    def resume(self) -> None:
        """Go on."""
        self._began += time.monotonic() - self._paused


def _plain(report: Report | dict[str, Any]) -> dict[str, Any]:
    """A report as Python numbers, as a checkpoint holds it."""
    if isinstance(report, dict):
        return report
    metrics, bad_leaf, in_a_row = jax.device_get(report)
    return {"metrics": _numbers(metrics), "bad_leaf": int(bad_leaf), "skipped_in_a_row": int(in_a_row)}


def _numbers(metrics: Metrics) -> dict[str, float]:
    values = jax.device_get(dict(metrics))
    for name, value in values.items():
        if np.ndim(value):
            raise ValueError(f"metric {name}: got shape {np.shape(value)}, expected a scalar")
    return {name: float(value) for name, value in values.items()}


def _named(values: Mapping[str, float], setting: str, metric: str) -> float:
    if metric not in values:
        raise UserError(f"train.{setting}: got {metric!r}, expected a metric of the evaluation: {', '.join(values)}")
    return values[metric]


def _due(step: int, every: int, last: bool) -> bool:
    return bool(every) and (last or step % every == 0)
