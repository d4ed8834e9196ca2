"""The training loop.

Its order is an invariant, and a test holds it with a recording fake:

    evaluate the old state -> save (state, data position, counters) -> next batch -> step -> log the previous step

The metrics of a step are fetched only after the next one has been dispatched, so the device never waits for the host.
A checkpoint carries them along, and a resumed training continues right behind the save: each step is evaluated, saved
and logged once.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.errors import UserError
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import TrainConfig
from experiments.training.data import DeviceBatches
from experiments.training.mesh import batch_sharding, make_mesh, state_shardings
from experiments.training.metrics import MetricsLog, Progress
from experiments.training.optimizer import make_optimizer
from experiments.training.profile import StepTrace

Params = Any
Batch = Any
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What is trained, as three functions.

    Attributes:
        init: random key -> variables, for example `lambda key: model.init(key, tokens)`. Logical axis names on the
            parameters are honoured.
        loss: (variables, batch, key) -> (scalar, dictionary of scalars to log).
        evaluate: variables -> dictionary of scalars; None evaluates nothing. Compile it yourself.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]
    evaluate: Callable[[Params], Metrics] | None = None


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: jax.Array
    params: Params
    optimizer: optax.OptState


@dataclass(frozen=True)
class Outcome:
    """A finished training.

    Attributes:
        params: the last parameters, on the mesh.
        train: "step" and each metric of every update, as arrays; step n is the n-th update.
        evaluation: "step" and each metric of every evaluation; step n is after n updates.
        seconds: spent in steps and data, the step's compilation included, evaluation and saving not.
    """

    params: Params
    train: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray]
    seconds: float


def train(
    config: TrainConfig,
    task: Task,
    data: grain.MapDataset | grain.IterDataset,
    folder: Path,
    *,
    seed: int,
    label: str = "train",
) -> Outcome:
    """Train, or go on from the newest checkpoint in `folder`, or return at once if that one is the last.

    Args:
        config: steps, batch size, optimizer, mesh, when to evaluate and save.
        task: initialisation, loss and evaluation.
        data: endless batches of pytrees of arrays with a leading batch axis; `experiments.training.data.batches`.
        folder: for checkpoints and metrics; made if it is not there.
        seed: of the initialisation and of the keys given to the loss. Step n's key depends on (seed, n) alone.
        label: shown beside the progress.

    Returns:
        The outcome, its history complete whether or not the training was interrupted.

    Raises:
        UserError: the mesh does not fit the devices, a checkpoint cannot be read, or it is beyond the last step.
    """
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    with jax.set_mesh(mesh), ExitStack() as opened:
        create, shardings, shapes = _initializer(task, optimizer, seed, mesh)
        checkpoints = opened.enter_context(closing(Checkpoints(folder / "checkpoints")))
        start = _start(checkpoints, create, shapes, shardings)
        if start.step > config.steps:
            raise UserError(f"{folder} is at step {start.step} already, beyond the {config.steps} steps asked for")
        log = opened.enter_context(closing(MetricsLog(folder, start.step, resumed=start.resumed)))
        batches = opened.enter_context(closing(DeviceBatches(data, batch_sharding(mesh), start.data)))
        progress = opened.enter_context(closing(Progress(label, config.steps, start.step)))
        update = make_update(task.loss, optimizer, seed, shardings)
        end = Loop(config, task.evaluate, update, batches, checkpoints, log, progress).run(start)
    return Outcome(end.state.params, log.columns("train"), log.columns("eval"), end.seconds)


@dataclass
class Position:
    """Where the loop stands between two updates: exactly what a checkpoint holds."""

    state: TrainState
    step: int = 0
    data: Any = None
    seconds: float = 0.0
    pending: Metrics | None = None
    resumed: bool = False


def make_update(
    loss: Callable, optimizer: optax.GradientTransformation, seed: int, shardings: Any = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One jitted optimizer update: (state, batch) -> (state, metrics), the state donated.

    Example:
        >>> loss = lambda w, batch, key: (jnp.sum((w - batch) ** 2), {})
        >>> optimizer = optax.sgd(0.25)
        >>> update = make_update(loss, optimizer, seed=0)
        >>> w = jnp.zeros(2)
        >>> state, metrics = update(TrainState(jnp.array(0), w, optimizer.init(w)), jnp.ones(2))
        >>> state.params.tolist(), float(metrics["loss"])
        ([0.5, 0.5], 2.0)
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {"loss": value, **metrics}

    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))


def _initializer(
    task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> tuple[Callable[[], TrainState], Any, Any]:
    """How to create the first state right into its shardings, those shardings, and the shapes."""

    def create() -> TrainState:
        # Another stream than the keys of the steps, which fold in step numbers from 0.
        params = task.init(jax.random.fold_in(jax.random.key(seed), 2**31))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    boxed = jax.eval_shape(create)
    shardings = state_shardings(boxed, mesh)
    jitted = jax.jit(lambda: nn.meta.unbox(create()), out_shardings=shardings)
    return jitted, shardings, nn.meta.unbox(boxed)


def _start(checkpoints: Checkpoints, create: Callable[[], TrainState], shapes: Any, shardings: Any) -> Position:
    restored = checkpoints.restore(shapes, shardings)
    if restored is None:
        return Position(create())
    state, loop = restored
    return Position(state, loop["step"], loop["data"], loop["seconds"], loop["pending"], resumed=True)


@dataclass
class Loop:
    """The loop, its parts given from outside so that a test can record in which order it calls them.

    Attributes:
        config: steps, and when to evaluate and save.
        evaluate: variables -> scalars, or None.
        update: (state, batch) -> (state, metrics).
        batches: iterator over batches with `get_state`.
        checkpoints: has `save`.
        log: has `write` and `sync`.
        progress: has `advance`.
    """

    config: TrainConfig
    evaluate: Callable[[Params], Metrics] | None
    update: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batches: Any
    checkpoints: Any
    log: Any
    progress: Any

    def run(self, now: Position) -> Position:
        """Go on from `now` to the last step; `now` is advanced in place."""
        trace, clock = StepTrace(self.config.steps), Stopwatch(now.seconds)
        try:
            while True:
                if not now.resumed:
                    self._evaluate_and_save(now, clock)
                now.resumed = False
                if now.step == self.config.steps:
                    break
                trace.at(now.step)
                now.state, metrics = self.update(now.state, next(self.batches))
                self._log_previous(now)
                now.step, now.pending = now.step + 1, metrics
        finally:
            trace.stop()
        self._log_previous(now)
        return now

    def _evaluate_and_save(self, now: Position, clock: "Stopwatch") -> None:
        last = now.step == self.config.steps
        evaluate = self.evaluate if _due(now.step, self.config.eval_every, last) else None
        saving = last or (now.step > 0 and _due(now.step, self.config.save_every, False))
        if evaluate is None and not saving:
            return
        jax.block_until_ready(now.state)
        now.seconds = clock.pause()
        if evaluate is not None:
            self.log.write(now.step, "eval", jax.device_get(evaluate(now.state.params)))
        if saving:
            self._save(now)
        clock.resume()

    def _save(self, now: Position) -> None:
        # The rows up to here must be on disk before a checkpoint says that they were written.
        self.log.sync()
        pending = None if now.pending is None else {k: float(v) for k, v in jax.device_get(now.pending).items()}
        loop = {"step": now.step, "data": self.batches.get_state(), "seconds": now.seconds, "pending": pending}
        self.checkpoints.save(now.step, now.state, loop)

    def _log_previous(self, now: Position) -> None:
        if now.pending is not None:
            values = jax.device_get(now.pending)
            self.log.write(now.step, "train", values)
            self.progress.advance(values)


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


def _due(step: int, every: int, last: bool) -> bool:
    return bool(every) and (last or step % every == 0)
