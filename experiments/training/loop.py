"""The training loop.

Its order is an invariant, and a test holds it with a recording fake:

    evaluate the old state -> save (state, data position, counters) -> next batch -> step -> log the previous step

The metrics of a step are fetched only after the next one has been dispatched, so the device never waits for the host.
A checkpoint carries them along, and a resumed training continues right behind the save: each step is evaluated, saved
and logged once.
"""

import math
import time
import zlib
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
from experiments.training.background import failures_raised
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import TrainConfig
from experiments.training.data import DeviceBatches, batches
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
    data: Mapping[str, np.ndarray] | grain.MapDataset | grain.IterDataset,
    folder: str | Path,
    *,
    seed: int,
    label: str = "train",
) -> Outcome:
    """Train, or go on from the newest checkpoint in `folder`, or return at once if that one is the last.

    Args:
        config: steps, batch size, optimizer, mesh, when to evaluate and save.
        task: initialisation, loss and evaluation.
        data: columns by name, drawn in an order that the seed decides; or a Grain dataset of endless batches.
        folder: for checkpoints and metrics; made if it is not there.
        seed: of the initialisation and of the keys given to the loss. Step n's key depends on (seed, n) alone.
        label: shown beside the progress.

    Returns:
        The outcome, its history complete whether or not the training was interrupted.

    Raises:
        UserError: the mesh does not fit the devices or the batch, a checkpoint cannot be read, or it is beyond the last
            step.
    """
    folder = Path(folder)
    data = batches(data, config.batch_size, seed=seed) if isinstance(data, Mapping) else data
    mesh = make_mesh(config.mesh)
    copies = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % copies:
        raise UserError(
            f"train.batch_size: got {config.batch_size}, expected a multiple of {copies}, "
            "the number of devices along the mesh axes data and fsdp"
        )
    optimizer = make_optimizer(config.optimizer, config.steps)
    with jax.set_mesh(mesh), failures_raised(), ExitStack() as opened:
        create, shardings, shapes = _initializer(task, optimizer, seed, mesh)
        checkpoints = opened.enter_context(closing(Checkpoints(folder / "checkpoints")))
        start = _start(checkpoints, create, shapes, shardings)
        if start.step > config.steps:
            raise UserError(f"{folder} is at step {start.step} already, beyond the {config.steps} steps asked for")
        if start.seed not in (None, seed):
            raise UserError(f"{folder} holds a training of seed {start.seed}, not {seed}")
        start.seed = seed
        log = opened.enter_context(closing(MetricsLog(folder, start.step, resumed=start.resumed)))
        stream = opened.enter_context(closing(DeviceBatches(data, batch_sharding(mesh), start.data)))
        progress = opened.enter_context(closing(Progress(label, config.steps, start.step)))
        update = make_update(task.loss, optimizer, seed, shardings)
        end = Loop(config, task.evaluate, update, stream, checkpoints, log, progress).run(start)
    return Outcome(end.state.params, log.columns("train"), log.columns("eval"), end.seconds)


@dataclass
class Position:
    """Where the loop stands between two updates: exactly what a checkpoint holds."""

    state: TrainState
    step: int = 0
    data: Any = None
    seconds: float = 0.0
    pending: Metrics | None = None
    seed: int | None = None
    resumed: bool = False


def random_stream(seed: int, name: str) -> jax.Array:
    """A random key for one purpose, so that no two purposes of a seed share their random numbers.

    Args:
        seed: of the training.
        name: of the purpose; "steps" and "initialisation" are the loop's own.

    Returns:
        The key.

    Example:
        >>> bool(random_stream(0, "data") == random_stream(0, "steps"))
        False
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def make_update(
    loss: Callable, optimizer: optax.GradientTransformation, seed: int, shardings: Any = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One jitted optimizer update, its state donated.

    Args:
        loss: (params, batch, key) -> (scalar, dictionary of scalars).
        optimizer: an optax transformation.
        seed: of the keys given to the loss; step n's key depends on (seed, n) alone.
        shardings: pytree of shardings of the new state; None leaves them to the compiler.

    Returns:
        (state, batch) -> (state, metrics), where the metrics contain "loss".

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
        key = jax.random.fold_in(random_stream(seed, "steps"), state.step)
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
        params = task.init(random_stream(seed, "initialisation"))
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
    return Position(state, **loop, resumed=True)


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
                trace.at(now.step, now.state)
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
            self.log.write(now.step, "eval", _numbers(now.step, evaluate(now.state.params)))
        if saving:
            self._save(now)
        clock.resume()

    def _save(self, now: Position) -> None:
        # The rows up to here must be on disk before a checkpoint says that they were written.
        self.log.sync()
        pending = None if now.pending is None else _numbers(now.step, now.pending)
        loop = {"step": now.step, "data": self.batches.get_state(), "seconds": now.seconds, "pending": pending}
        self.checkpoints.save(now.step, now.state, {**loop, "seed": now.seed})

    def _log_previous(self, now: Position) -> None:
        if now.pending is not None:
            values = _numbers(now.step, now.pending)
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


def _numbers(step: int, metrics: Metrics) -> dict[str, float]:
    """Metrics as Python numbers; a loss that is not finite stops the training before a checkpoint keeps it."""
    values = jax.device_get(dict(metrics))
    for name, value in values.items():
        if np.ndim(value):
            raise ValueError(f"metric {name}: got shape {np.shape(value)}, expected a scalar")
    if not math.isfinite(values.get("loss", 0.0)):
        raise UserError(f"the loss is {values['loss']} after {step} updates; the newest checkpoint is from before")
    return {name: float(value) for name, value in values.items()}


def _due(step: int, every: int, last: bool) -> bool:
    return bool(every) and (last or step % every == 0)
