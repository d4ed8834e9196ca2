"""A small training, and what may happen to it."""

import json
import os
import signal
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from experiments import runs
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from experiments.training.data import DeviceBatches, examples
from experiments.training.task import Task

STEPS = 13


def regression(evaluate=True):
    """Noisy linear regression; the noise tests that the keys of the steps survive a restart."""
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 3)).astype(np.float32)
    columns = {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32)}

    def loss(params, batch, key):
        error = batch["x"] @ params["kernel"] - batch["y"] + 0.1 * jax.random.normal(key, batch["y"].shape)
        return jnp.mean(error**2), {"error": jnp.abs(error).max()}

    task = Task(
        init=lambda key: {"kernel": jax.random.normal(key, (3,))},
        loss=loss,
        evaluate=(lambda params: {"first": params["kernel"][0]}) if evaluate else None,
    )
    return task, examples(columns, seed=3)


def config(steps=STEPS, save_every=4, eval_every=3, checkpoint=None, **settings):
    """A short training with a rate that depends on the step."""
    optimizer = OptimizerConfig(learning_rate=0.1, clip_norm=1.0)
    checkpoint = CheckpointConfig(every=save_every, **(checkpoint or {}))
    return TrainConfig(
        steps=steps, batch_size=8, eval_every=eval_every, checkpoint=checkpoint, optimizer=optimizer, **settings
    )


def rows(folder):
    """The rows of the metrics file."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@contextmanager
def allowing(*fields):
    """As `--allow_mismatch` does."""
    token = runs._ALLOWED.set(frozenset(fields))
    yield
    runs._ALLOWED.reset(token)


def signalled(monkeypatch, after, number=signal.SIGTERM):
    """Send a signal to this process when so many batches have been read."""
    read, count = DeviceBatches.__next__, iter(range(after))

    def send(self):
        if next(count, None) is None:
            os.kill(os.getpid(), number)
        return read(self)

    monkeypatch.setattr(DeviceBatches, "__next__", send)


def poisoned(first, last, count=50):
    """The regression, its updates from `first` to `last` made NaN by their data."""
    task, _ = regression()
    random = np.random.default_rng(0)
    columns = {"x": random.standard_normal((count * 8, 3)).astype(np.float32), "y": np.zeros(count * 8, np.float32)}
    columns["y"][(first - 1) * 8 : last * 8 : 8] = np.nan
    return task, examples(columns, seed=0, shuffle=False)


def saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
