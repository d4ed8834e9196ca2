"""Steps per second of the loop against a bare jitted step in a Python loop, the two measured in turn."""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.config import TrainConfig
from experiments.training.data import DeviceBatches, batches
from experiments.training.loop import Loop, Position, TrainState, make_update
from experiments.training.mesh import batch_sharding, make_mesh
from experiments.training.metrics import MetricsLog
from experiments.training.optimizer import make_optimizer

WIDTH, WARM_UP = 128, 20


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


def loop_overhead(pairs: int = 5, seconds: float = 2.0) -> list[Overhead]:
    """Compare for a 1 ms step on batches in memory and for a 10 ms step on rows that are shuffled and batched.

    Args:
        pairs: measurements of each, in turn, because the speed of a shared machine drifts.
        seconds: length of one measurement.

    Returns:
        One comparison per case.
    """
    random = np.random.default_rng(0)
    rows = random.standard_normal((4096, WIDTH)).astype(np.float32)
    in_memory = grain.MapDataset.source([{"x": rows[i : i + 16]} for i in range(0, 1024, 16)]).repeat()
    cases = [
        ("1 ms step, batches in memory", 1e-3, in_memory),
        ("10 ms step, rows", 1e-2, batches({"x": rows}, 16, seed=0)),
    ]
    return [_compare(name, target, data, pairs, seconds) for name, target, data in cases]


def _compare(name: str, target: float, data: Any, pairs: int, seconds: float) -> Overhead:
    update = _calibrated(target)
    bare, ratios = [], []
    for _ in range(pairs):
        steps = WARM_UP + int(seconds / target)
        bare.append(_bare(update, steps))
        ratios.append(_looped(update, data, steps) / bare[-1])
    return Overhead(name, 1e3 / statistics.median(bare), tuple(ratios))


def _calibrated(target: float) -> Callable:
    """An update whose step takes about `target` seconds here."""
    update, depth = _update(32), 32
    for _ in range(2):
        depth = max(1, round(depth * target * _bare(update, WARM_UP + 200)))
        update = _update(depth)
    return update


def _update(depth: int) -> Callable:
    def loss(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["kernel"]), None), batch["x"], None, length=depth)
        return jnp.mean(h**2), {"mean": jnp.mean(h)}

    return make_update(loss, make_optimizer(TrainConfig().optimizer, 1000), seed=0)


def _state() -> TrainState:
    params = {"kernel": jax.random.normal(jax.random.key(0), (WIDTH, WIDTH)) / WIDTH**0.5}
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(TrainConfig().optimizer, 1000).init(params))


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


def _looped(update: Callable, data: Any, steps: int) -> float:
    """Steps per second of the loop with the same update, metrics and data included."""
    config = TrainConfig(steps=steps, eval_every=0, save_every=0)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, closing(MetricsLog(Path(folder))) as log:
        sharding = batch_sharding(make_mesh(config.mesh))
        with closing(DeviceBatches(data, sharding)) as stream:
            Loop(config, None, update, stream, _Unsaved(), log, clock).run(Position(_state()))
    return (len(clock.times) - WARM_UP) / (clock.times[-1] - clock.times[WARM_UP - 1])


class _Clock:
    """Stands in for the progress bar and notes when each update was logged."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, _: Any) -> None:
        self.times.append(time.perf_counter())


class _Unsaved:
    """Stands in for the checkpoints; what saving costs is another question."""

    def save(self, *_: Any) -> None:
        pass
