"""A small training with everything that has a state, and a program that runs it in a process of its own.

The program takes a list of jobs as JSON and does them one after the other. Beside what a training leaves in its folder,
each writes `start.npz`, the state it began with; `end.npz`, the last one, or `error.txt`; `last.npz`, the state that it
left early with; `read.txt`, the examples of
each update; and `evaluated.txt`, a line for each evaluation. A job may say how its process ends:

    exit_in_microbatch, committed    inside this microbatch, counted from 1, once this checkpoint (0: none) is committed
    terminate_at                     SIGTERM while the update after so many is read, so that it leaves one later
    save, written, kill_at           SIGKILL before the update after `kill_at` while the checkpoint `save` is written in
                                     the background: before its manifest, or, if `written`, between that and the commit
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.errors import UserError
from experiments.training import checkpoint
from experiments.training.config import CheckpointConfig, MeshConfig, OptimizerConfig, TrainConfig
from experiments.training.data import DeviceBatches
from experiments.training.loop import Loop, train
from experiments.training.preemption import Preempted
from experiments.training.task import Loss, Task
from experiments.training.validation import validation
from lightnet.backbone import partitioned

STEPS, BATCH, EXAMPLES, FEATURES, CLASSES = 8, 8, 37, 6, 5


class Model(nn.Module):
    """Two heads on an MLP; with `stateful`, batch statistics and dropout in between."""

    stateful: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> tuple[jax.Array, jax.Array]:
        up = partitioned(nn.initializers.lecun_normal(), "embed", "mlp")
        down = partitioned(nn.initializers.lecun_normal(), "mlp", "embed")
        x = nn.Dense(16, kernel_init=up, name="up")(x)
        if self.stateful:
            x = nn.BatchNorm(use_running_average=not training, momentum=0.9, name="norm")(x)
            x = nn.Dropout(0.25, deterministic=not training)(x)
        x = nn.Dense(8, kernel_init=down, name="down")(nn.gelu(x))
        return nn.Dense(CLASSES, name="classes")(x), nn.Dense(1, name="value")(x)[:, 0]


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    """Examples with unequal weights, and their row numbers; no number of whole batches."""
    random = np.random.default_rng(seed)
    return {
        "row": np.arange(EXAMPLES, dtype=np.int32),
        "x": random.standard_normal((EXAMPLES, FEATURES)).astype(np.float32),
        "class": random.integers(0, CLASSES, EXAMPLES).astype(np.int32),
        "weight": random.uniform(0.5, 2, EXAMPLES).astype(np.float32),
    }


def losses(model: Model, variables: Any, batch: Any, **options: Any) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """Losses of the examples by head, (B,) each, and new batch statistics; the statistics stay in float32."""
    (logits, value), collections = model.apply(variables, batch["x"], mutable=["batch_stats"], **options)
    logits, value = logits.astype(jnp.float32), value.astype(jnp.float32)
    of_class = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["class"])
    return {"class": of_class, "value": (value - batch["x"].sum(axis=1)) ** 2}, collections


def task(stateful: bool = True, microbatch: Any = None) -> Task:
    """Two weighted heads; one weight is a schedule, so that it depends on the step."""
    model, data = Model(stateful), columns()

    def loss(variables: Any, batch: Any, key: jax.Array) -> Loss:
        if microbatch is not None:
            jax.debug.callback(lambda _: microbatch(), batch["row"])
        heads, collections = losses(model, variables, batch, training=True, rngs={"dropout": key})
        weight = batch["weight"].sum()
        means = {name: (batch["weight"] * values).sum() / weight for name, values in heads.items()}
        return Loss(means, {"largest": heads["value"].max()}, collections, weight)

    return Task(
        init=lambda key: model.init(key, data["x"][:1], training=False),
        loss=loss,
        evaluate=validation(lambda variables, batch: losses(model, variables, batch, training=False)[0], data, 16),
        weights={"value": optax.schedules.linear_schedule(0.1, 1.0, STEPS)},
    )


def settings(**changes: Any) -> TrainConfig:
    """Four microbatches per update, bfloat16, an average, clipping, a schedule; save every 2, evaluate every 3."""
    changes["mesh"] = MeshConfig(**changes.get("mesh", {}))
    optimizer = OptimizerConfig(learning_rate=0.03, schedule="cosine", warmup=0.3, clip_norm=0.5, ssm_rate=0.1)
    saving = CheckpointConfig(every=2, keep=9)
    common = TrainConfig(STEPS, BATCH, 2, "bfloat16", ema_decay=0.8, eval_every=3, optimizer=optimizer)
    return replace(common, **{"checkpoint": saving, **changes})


def leaves(state: Any) -> dict[str, np.ndarray]:
    """The leaves of a state by name, on the host."""
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}


def do(job: dict[str, Any]) -> None:
    """Train as a job says: folder, seed, settings, stateful, and how its process ends."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    trained = _told(task(job.get("stateful", True), _microbatches(folder, job)), folder / "evaluated.txt")
    with (folder / "read.txt").open("a") as read:
        _observe(folder, read, job)
        try:
            end = train(settings(**job.get("settings", {})), trained, columns(), folder, seed=job.get("seed", 5))
        except UserError as error:
            (folder / "error.txt").write_text(str(error))
        else:
            np.savez(folder / "end.npz", **leaves(end.state))


def _told(trained: Task, path: Path) -> Task:
    """The task, its evaluations written down."""

    def evaluate(variables: Any) -> Any:
        with path.open("a") as file:
            file.write("evaluated\n")
        return trained.evaluate(variables)

    return replace(trained, evaluate=evaluate)


def _microbatches(folder: Path, job: dict[str, Any]) -> Callable[[], None] | None:
    """What the loss calls in every microbatch of a job that has `exit_in_microbatch`, even if that is 0, never.

    A program that calls back is another program, and is compiled anew in each process: such jobs are compared with one
    another.
    """
    if "exit_in_microbatch" not in job:
        return None
    count, target = itertools.count(1), folder / "checkpoints" / str(job.get("committed"))

    def microbatch() -> None:
        if next(count) == job["exit_in_microbatch"]:
            while job["committed"] and not target.exists():
                time.sleep(0.01)
            os._exit(9)

    return microbatch


_run, _next, _write_manifest = Loop.run, DeviceBatches.__next__, checkpoint.write_manifest


def _observe(folder: Path, read: Any, job: dict[str, Any]) -> None:
    """Write down where the training begins and what it reads; end the process where the job says so."""
    unfinished = threading.Event()

    def run(loop: Loop, start: Any) -> Any:
        np.savez(folder / "start.npz", **leaves(start.state))
        try:
            return _run(loop, start)
        except Preempted:
            np.savez(folder / "last.npz", **leaves(start.state))
            raise

    def following(batches: DeviceBatches) -> Any:
        step = batches.position // BATCH
        if step == job.get("terminate_at"):
            os.kill(os.getpid(), signal.SIGTERM)
        if step == job.get("kill_at"):
            assert unfinished.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)
        batch = _next(batches)
        print(step, *np.asarray(batch["row"]), file=read, flush=True)
        return batch

    def write_manifest(path: Any) -> None:
        if "kill_at" in job and path.name.startswith(str(job["save"])):
            if job["written"]:
                _write_manifest(path)
            unfinished.set()
            threading.Event().wait()
        _write_manifest(path)

    Loop.run, DeviceBatches.__next__, checkpoint.write_manifest = run, following, write_manifest


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        do(each)
