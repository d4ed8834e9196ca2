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
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from etils import epath

from experiments.distributed import agree, is_primary
from experiments.errors import UserError
from experiments.files import as_path, write_json
from experiments.training import preemption
from experiments.training.background import failures_raised
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import TrainConfig
from experiments.training.data import DeviceBatches, data_hash, examples
from experiments.training.mesh import batch_sharding, make_mesh
from experiments.training.metrics import MetricsLog, Progress
from experiments.training.optimizer import make_optimizer
from experiments.training.profile import StepTrace
from experiments.training.recording import recorder
from experiments.training.start import Position, begin, binding, say_what_is_missing
from experiments.training.task import Batch, Metrics, Task, Variables
from experiments.training.update import (
    Report,
    TrainState,
    evaluated,
    initializer,
    leaf_names,
    make_update,
    parts_of_a_batch,
    variables_of,
)

NOT_FINITE = "not_finite.json"


@dataclass(frozen=True)
class Outcome:
    """A finished training.

    Attributes:
        state: the last one, on the mesh.
        train: "step" and each metric of every update, as arrays; step n is the n-th update.
        evaluation: "step" and each metric of every evaluation; step n is after n updates.
        seconds: spent in steps and data, the step's compilation included, evaluation and saving not.
        best_step: of the checkpoint with the smallest value of `checkpoint.best`, None without one.
    """

    state: TrainState
    train: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray]
    seconds: float
    best_step: int | None = None

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
        The outcome, its history complete whether or not the training was interrupted; one that was taken over from
        another folder (`resume_from`) has its history from there on.

    Raises:
        UserError: the mesh does not fit the devices or the batch, checkpoints cannot be read or written or belong to
            another training, the data ended, or too many updates in a row were not finite.
        ValueError: the loss or a metric has another form than `Task` says.
        Preempted: SIGTERM arrived; everything is saved.
    """
    if (record := recorder()) is not None:
        return record(config, task, data, seed=seed, label=label)
    with preemption.training(label) as notice:
        return _train(config, task, data, epath.Path(as_path(folder)), seed, label, notice)


def _train(
    config: TrainConfig, task: Task, data: Any, folder: epath.Path, seed: int, label: str, notice: preemption.Notice
) -> Outcome:
    if task.evaluate is None and (judged := config.stop_metric or config.checkpoint.best):
        raise UserError(f"train: {judged!r} shall be judged, and the task has nothing to evaluate")
    mesh = make_mesh(config.mesh)
    microbatches = parts_of_a_batch(config, mesh)
    bound = binding(config, data_hash(data), seed)
    stream = examples(data, seed=seed) if isinstance(data, Mapping) else data
    optimizer = make_optimizer(config.optimizer, config.steps, task.labels)
    with jax.set_mesh(mesh), failures_raised(), ExitStack() as opened:
        create, shardings, shapes = initializer(task, optimizer, config, seed, mesh)
        checkpoints = opened.enter_context(closing(Checkpoints(folder / "checkpoints", config.checkpoint)))
        start = begin(checkpoints, folder, create, shapes, shardings, bound, label)
        agree("what is trained, and the step to start from", [bound, start.step])
        if start.step > config.steps:
            raise UserError(f"{folder} is at step {start.step} already, beyond the {config.steps} steps asked for")
        writes = is_primary()
        log = opened.enter_context(
            closing(MetricsLog(folder, start.step, resumed=start.saved, evaluated=start.evaluated, writes=writes))
        )
        say_what_is_missing(start, len(log.columns("train").get("step", ())), label)
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
            leave=notice.asked_to_leave,
            folder=folder,
            leaves=leaf_names(shapes),
            rows=_row_names(data, seed),
            binding=bound,
        )
        end = loop.run(start)
    if writes and (folder / NOT_FINITE).exists():
        (folder / NOT_FINITE).unlink()  # of an attempt that was overcome
    best_step = end.best[2] if end.best else None
    return Outcome(end.state, log.columns("train"), log.columns("eval"), end.seconds, best_step)


def _row_names(data: Any, seed: int) -> Callable[[range], list[int]]:
    """From indices into the global order to rows of the columns; of a dataset, the index itself is the name."""
    if not isinstance(data, Mapping):
        return list
    rows = examples({"row": np.arange(len(next(iter(data.values()))))}, seed=seed)
    return lambda indices: [int(rows[index]["row"]) for index in indices]


@dataclass
class Loop:
    """The loop, its parts given from outside so that a test can record in which order it calls them.

    Attributes:
        config: steps, and when to evaluate, save and stop.
        evaluate: variables -> scalars, or None.
        update: (state, batch) -> (state, report).
        batches: iterator over batches with `position`.
        checkpoints: has `save`, `check` and `keep_best`.
        log: has `write` and `sync`.
        progress: has `advance`.
        leave: completed updates -> whether to save and leave.
        folder: where a training that ends for values that are not finite says which ones.
        leaves: names that `Report.bad_leaf` counts.
        rows: indices into the global order -> what the data calls these examples.
        binding: what checkpoints are bound to.
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
    binding: Mapping[str, Any] = field(default_factory=dict)

    def run(self, now: Position) -> Position:
        """Go on from `now` to the last step; `now` is advanced in place."""
        trace, clock = StepTrace(self.config.steps), Stopwatch(now.seconds)
        try:
            while True:
                leaving = self.leave(now.step)
                self._evaluate_and_save(now, clock, leaving)
                if self._is_last(now):
                    break
                if leaving:
                    raise preemption.Preempted(now.step)
                trace.at(now.step, now.state)
                now.state, report = self.update(now.state, next(self.batches))
                trouble = self._log_previous(now)
                now.step, now.examples, now.pending = now.step + 1, self.batches.position, report
                now.evaluated = now.saved = False
                self.checkpoints.check()
                if trouble is not None:
                    self._give_up(now, trouble)
        finally:
            trace.stop()
        if (trouble := self._log_previous(now)) is not None:
            self._give_up(now, trouble)
        return now

    def _is_last(self, now: Position) -> bool:
        good_enough = self.config.stop_at is not None and now.lowest is not None and now.lowest <= self.config.stop_at
        stopped = bool(self.config.stop_metric) and (good_enough or now.stale >= self.config.patience)
        return now.step == self.config.steps or stopped

    def _evaluate_and_save(self, now: Position, clock: "Stopwatch", leaving: bool) -> None:
        end = now.step == self.config.steps
        due = self.evaluate is not None and not now.evaluated and _due(now.step, self.config.eval_every, end)
        # Who has to leave saves at once; the evaluation waits until somebody goes on from there.
        evaluating = due and (end or not leaving)
        saving = leaving or end or (now.step > 0 and _due(now.step, self.config.checkpoint.every, False))
        now.evaluated = evaluating or not due
        if not evaluating and (now.saved or not saving):
            return
        jax.block_until_ready(now.state)
        now.seconds = clock.pause()
        best = evaluating and self._judge(now, self._evaluate(now))
        if not now.saved and (saving or best or self._is_last(now)):
            self._save(now, best)
        elif best and now.best is not None:
            self.checkpoints.keep_best(now.step, now.best[1])
        clock.resume()

    def _evaluate(self, now: Position) -> dict[str, float]:
        assert self.evaluate is not None
        values = _numbers(self.evaluate(evaluated(now.state)))
        self.log.write(now.step, "eval", values)
        return values

    def _judge(self, now: Position, values: Mapping[str, float]) -> bool:
        """Count evaluations without progress; returns whether this state is the best so far."""
        if metric := self.config.stop_metric:
            value = _named(values, "stop_metric", metric)
            better = math.isfinite(value) and (now.lowest is None or value < now.lowest)
            now.lowest, now.stale = (value, 0) if better else (now.lowest, now.stale + 1)
        if not (metric := self.config.checkpoint.best):
            return False
        value = _named(values, "checkpoint.best", metric)
        best = math.isfinite(value) and (now.best is None or now.best[0] != metric or value < now.best[1])
        now.best = [metric, value, now.step] if best else now.best
        return best

    def _save(self, now: Position, best: bool) -> None:
        # The rows up to here must be on disk before a checkpoint says that they were written.
        self.log.sync()
        now.pending = None if now.pending is None else _plain(now.pending)
        counters = {**now.counters(), "binding": dict(self.binding)}
        self.checkpoints.save(now.step, now.state, counters, best=now.best[1] if best and now.best else None)
        now.saved = True

    def _log_previous(self, now: Position) -> dict[str, Any] | None:
        """Log what the last update reported; returns which updates were not finite, if these are too many in a row."""
        if now.pending is None:
            return None
        report = now.pending = _plain(now.pending)
        self.log.write(now.step, "train", report["metrics"])
        self.progress.advance(report["metrics"])
        if report["bad_leaf"] < 0:
            return None
        self.log.write(now.step, "skipped", self._skipped(now, 1))
        count = report["skipped_in_a_row"]
        if count <= self.config.max_skipped:
            return None
        return {"updates": [now.step - count + 1, now.step], **self._skipped(now, count)}

    def _skipped(self, now: Position, count: int) -> dict[str, Any]:
        """The last so many updates, by the examples that they saw and the first value that was not finite."""
        size = count * self.config.batch_size
        leaf = self.leaves[now.pending["bad_leaf"]]
        return {"leaf": leaf, "first_example": now.examples - size, "examples": size}

    def _give_up(self, now: Position, trouble: dict[str, Any]) -> None:
        """Save the state, which is the one before these updates, say which they were, and end the training."""
        if not now.saved:
            self._save(now, best=False)
        first, (begin, end) = trouble["first_example"], trouble["updates"]
        trouble["rows"] = self.rows(range(first, first + trouble["examples"]))
        if self.folder is not None and is_primary():
            write_json(self.folder / NOT_FINITE, trouble)
        raise UserError(
            f"{end - begin + 1} updates in a row were not finite ({trouble['leaf']}), the last of them update {end}: "
            f"they were skipped, the state before them is saved; {self.folder}/{NOT_FINITE} names their examples"
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
        if name in ("step", "split"):
            raise ValueError(f"metric {name}: the name is taken by the log, expected another one")
        if np.ndim(value):
            raise ValueError(f"metric {name}: got shape {np.shape(value)}, expected a scalar")
    return {name: float(value) for name, value in values.items()}


def _named(values: Mapping[str, float], setting: str, metric: str) -> float:
    if metric not in values:
        raise UserError(f"train.{setting}: got {metric!r}, expected a metric of the evaluation: {', '.join(values)}")
    return values[metric]


def _due(step: int, every: int, last: bool) -> bool:
    return bool(every) and (last or step % every == 0)
