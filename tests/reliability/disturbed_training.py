"""The training that is disturbed: short, with everything in it that a checkpoint must hold.

    python tests/reliability/disturbed_training.py FOLDER

It prints `update N` before each update, N being the completed ones, and at last `end` with digests of all that it made.
"""

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import one_line
from experiments.training import loop
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from experiments.training.task import Loss, Task
from experiments.training.validation import validation

STEPS, BATCH = 40, 8
PAUSE_SECONDS = 0.01  # per update, so that a signal falls between saves and inside them alike


def train_once(folder: Path) -> int:
    """Begin or continue the training in `folder`, and print what it ends with; returns the exit status."""

    class Noted(loop.DeviceBatches):
        """Tells which update comes next, and gives the disturbance time to hit it."""

        def __next__(self) -> Any:
            print("update", self.position // BATCH, flush=True)
            time.sleep(PAUSE_SECONDS)
            return super().__next__()

    loop.DeviceBatches = Noted
    try:
        outcome = loop.train(*regression(), folder, seed=5)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", flush=True)
        return 2
    print("end", json.dumps(digests(outcome, folder)), flush=True)
    return 0


def regression() -> tuple[Any, Any, Mapping[str, Any]]:
    """Settings, task and data with everything that a state may hold: collections, an average, skipped updates."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
            return nn.Dense(1)(nn.Dropout(0.1, deterministic=not train)(nn.relu(x)))[:, 0]

    def loss(variables: Any, batch: Any, key: Any) -> Loss:
        given, mutable = {"dropout": key}, ["batch_stats"]
        predicted, collections = model.apply(variables, batch["x"], True, rngs=given, mutable=mutable)
        return Loss(jnp.mean((predicted - batch["y"]) ** 2), {}, collections)

    def errors(variables: Any, batch: Any) -> Mapping[str, Any]:
        return {"error": (model.apply(variables, batch["x"], False) - batch["y"]) ** 2}

    model, numbers = Model(), np.random.default_rng(0)
    x = numbers.standard_normal((140, 4)).astype(np.float32)
    y = np.sin(x).sum(-1)
    held_out = {"x": x[103:], "y": y[103:]}
    data = {"x": x[:103], "y": np.where(np.arange(103) == 50, np.nan, y[:103]).astype(np.float32)}
    task = Task(lambda key: model.init(key, x[:1], False), loss, validation(errors, held_out, 16))
    config = TrainConfig(
        steps=STEPS,
        batch_size=BATCH,
        device_batch=BATCH // 2,
        ema_decay=0.9,
        eval_every=7,
        optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=1.0),
        checkpoint=CheckpointConfig(every=4, keep=3, permanent_every=16, best="error"),
    )
    return config, task, data


def digests(outcome: Any, folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of each leaf of the state, each column of the history, and the lines of the metrics."""
    tree = {"state": outcome.state, "train": outcome.train, "evaluation": outcome.evaluation}
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        content = f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = hashlib.sha256(content).hexdigest()
    lines = sorted((folder / "metrics.jsonl").read_bytes().splitlines())
    return {**found, "metrics.jsonl": hashlib.sha256(b"\n".join(lines)).hexdigest()}


if __name__ == "__main__":
    sys.exit(train_once(Path(sys.argv[1])))
