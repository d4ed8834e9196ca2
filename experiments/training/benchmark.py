"""What the loop costs: steps per second against a bare jitted step, time blocked by saving, data tokens per second."""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.checkpoint import Checkpoints
from experiments.training.config import CheckpointConfig, TrainConfig
from experiments.training.data import DeviceBatches, examples
from experiments.training.loop import Loop
from experiments.training.mesh import batch_sharding, make_mesh
from experiments.training.metrics import MetricsLog
from experiments.training.optimizer import make_optimizer
from experiments.training.start import Position
from experiments.training.task import Task
from experiments.training.update import TrainState, initial_state, make_update

WIDTH, WARM_UP, SAVE_EVERY = 128, 20, 100


@dataclass(frozen=True)
class Overhead:
    """One comparison.

    Attributes:
        name: which data.
        step_ms: a bare step, median, in milliseconds.
        ratios: steps per second of the loop over those of the bare step, one per pair of measurements.
    """

    name: str
    step_ms: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the pairs."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Saving:
    """What saving costs at one save per 100 steps of 10 ms.

    Attributes:
        megabytes: size of the state.
        blocked: fraction of the time that the loop waited in a save.
        ratios: steps per second with saves over those without, one per pair of measurements; what the threads that
            write take away from the step shows here.
    """

    megabytes: float
    blocked: float
    ratios: tuple[float, ...]


def loop_overhead(pairs: int = 5, seconds: float = 2.0) -> list[Overhead]:
    """Compare for a 1 ms and for a 10 ms step, on rows that are shuffled and batched.

    Args:
        pairs: measurements of each, in turn, because the speed of a shared machine drifts.
        seconds: length of one measurement.

    Returns:
        One comparison per case.
    """
    return [_compare(f"{1e3 * target:.0f} ms step", target, pairs, seconds) for target in (1e-3, 1e-2)]


def saving_overhead(pairs: int = 5, saves: int = 2) -> list[Saving]:
    """Measure a state of 0.2 MB and one of 12 MB.

    Args:
        pairs: measurements of each, in turn.
        saves: saves in one measurement.

    Returns:
        One measurement per size.
    """
    return [_saving(extra, pairs, saves) for extra in (0, 1_000_000)]


def data_tokens_per_second(seconds: float = 2.0, batch_size: int = 64, length: int = 512) -> float:
    """Tokens per second that this process reads, shuffles, batches and hands to its device, with nothing else to do.

    Args:
        seconds: length of the measurement.
        batch_size: rows of a batch.
        length: tokens of a row.

    Returns:
        Tokens per second.
    """
    rows = {"tokens": np.zeros((4096, length), np.int32), "mask": np.ones((4096, length), bool)}
    sharding = batch_sharding(make_mesh(TrainConfig().mesh))
    with closing(DeviceBatches(examples(rows, seed=0), batch_size, sharding)) as stream:
        for _ in range(WARM_UP):
            jax.block_until_ready(next(stream))
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            jax.block_until_ready(next(stream))
            count += 1
        return count * batch_size * length / (time.perf_counter() - start)


def _compare(name: str, target: float, pairs: int, seconds: float) -> Overhead:
    update = _calibrated(target)
    bare, ratios = [], []
    for _ in range(pairs):
        steps = WARM_UP + int(seconds / target)
        bare.append(_bare(update, steps))
        ratios.append(_looped(update, steps) / bare[-1])
    return Overhead(name, 1e3 / statistics.median(bare), tuple(ratios))


def _saving(extra: int, pairs: int, saves: int) -> Saving:
    update, steps = _calibrated(1e-2), WARM_UP + saves * SAVE_EVERY + SAVE_EVERY // 2
    ratios, blocked = [], []
    for _ in range(pairs):
        without = _looped(update, steps, extra)
        with tempfile.TemporaryDirectory() as folder, closing(Checkpoints(Path(folder) / "checkpoints")) as checkpoints:
            timed = _Timed(checkpoints)
            ratios.append(_looped(update, steps, extra, timed) / without)
        # The first save also makes folders and threads, and the last one is that of the last state.
        spent = timed.seconds[1:-1] or timed.seconds
        blocked.append(sum(spent) / len(spent) * ratios[-1] * without / SAVE_EVERY)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(_state(extra)))
    return Saving(size / 1e6, statistics.median(blocked), tuple(ratios))


def _calibrated(target: float) -> Callable:
    """An update whose step takes about `target` seconds here."""
    update, depth = _update(32), 32
    for _ in range(2):
        depth = max(1, round(depth * target * _bare(update, WARM_UP + 200)))
        update = _update(depth)
    return update


def _optimizer() -> optax.GradientTransformation:
    return make_optimizer(TrainConfig().optimizer, 1000)


def _update(depth: int) -> Callable:
    def loss(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["kernel"]), None), batch["x"], None, length=depth)
        return jnp.mean(h**2), {"mean": jnp.mean(h)}

    return make_update(Task(lambda key: None, loss), _optimizer(), TrainConfig(), seed=0)


def _state(extra: int = 0) -> TrainState:
    """A kernel, and so many parameters more that nothing reads."""
    kernel = jax.random.normal(jax.random.key(0), (WIDTH, WIDTH)) / WIDTH**0.5
    return initial_state({"kernel": kernel, "idle": jnp.zeros(1 + extra)}, _optimizer(), ema=False)


def _bare(update: Callable, steps: int) -> float:
    """Steps per second of the bare update on one batch."""
    state, batch = _state(), jax.device_put({"x": np.ones((16, WIDTH), np.float32)})
    for step in range(steps):
        if step == WARM_UP:
            jax.block_until_ready(state)
            start = time.perf_counter()
        state, _ = update(state, batch)
    jax.block_until_ready(state)
    return (steps - WARM_UP) / (time.perf_counter() - start)


def _looped(update: Callable, steps: int, extra: int = 0, checkpoints: Any = None) -> float:
    """Steps per second of the loop with the same update, metrics and data included."""
    every = SAVE_EVERY if checkpoints else 0
    config = TrainConfig(steps=steps, eval_every=0, checkpoint=CheckpointConfig(every=every))
    clock, sharding = _Clock(), batch_sharding(make_mesh(config.mesh))
    data = examples({"x": np.random.default_rng(0).standard_normal((4096, WIDTH)).astype(np.float32)}, seed=0)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(MetricsLog(Path(folder))) as log,
        closing(DeviceBatches(data, config.batch_size, sharding)) as stream,
    ):
        Loop(config, None, update, stream, checkpoints or _Unsaved(), log, clock).run(Position(_state(extra)))
    return (len(clock.times) - WARM_UP) / (clock.times[-1] - clock.times[WARM_UP - 1])


class _Clock:
    """Stands in for the progress bar and notes when each update was logged."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, _: Any) -> None:
        self.times.append(time.perf_counter())


class _Unsaved:
    """Stands in for the checkpoints where saving is not the question."""

    def save(self, *_: Any, **__: Any) -> None:
        pass

    def check(self) -> None:
        pass


class _Timed:
    """Checkpoints that note how long each save kept the loop."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints, self.seconds = checkpoints, list[float]()

    def save(self, *arguments: Any, **settings: Any) -> None:
        start = time.perf_counter()
        self._checkpoints.save(*arguments, **settings)
        self.seconds.append(time.perf_counter() - start)

    def check(self) -> None:
        self._checkpoints.check()
