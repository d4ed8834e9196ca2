"""One model on one published set: the loss, the errors on the held-out part, and which update counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from experiments.hiss.models import LevelSize, model_of
from experiments.hiss.names import read_name
from experiments.hiss.recordings import Recording
from experiments.hiss.released import FREQ_RATIO, PUBLISHED, Preparation, Scale, turned
from experiments.training.data import examples
from experiments.training.loop import train
from experiments.training.task import Loss, Task
from experiments.training.validation import validation

if TYPE_CHECKING:
    from experiments.hiss.published import Config

Parts = tuple[Sequence[Recording], Sequence[Recording]]
LOSS, MSE = "held-out loss", "held-out MSE"
_STATES = {"s4": 64, "mamba": 16}


def train_one(
    config: Config, name: str, model: str, parts: Parts, prepare: Preparation, run_dir: Path, seed: int
) -> tuple[tuple, dict[str, np.ndarray]]:
    """Train a model on a set.

    Args:
        config: of everything.
        name: of the set.
        model: its name, see `experiments.hiss.names`.
        parts: recordings to train on and held out.
        prepare: recording -> example.
        run_dir: for checkpoints and metrics.
        seed: of everything.

    Returns:
        A row of `published.COLUMNS`; and "updates", "loss" and "mse" of the evaluations.
    """
    network = network_of(config, name, model, parts[0][0].targets.shape[1])
    epoch = math.ceil(len(parts[0]) / config.train.batch_size)
    outcome = train(
        replace(config.train, steps=config.epochs * epoch, eval_every=epoch),
        training_task(network, prepare, parts[1], config.train.batch_size),
        examples_of(name, parts[0], prepare, seed),
        run_dir / "training" / f"{name}-{model.replace(' ', '-')}-{seed}",
        seed=seed,
        label=f"{name}, {model}, seed {seed}",
    )
    updates, loss, mse = (outcome.evaluation[column] for column in ("step", LOSS, MSE))
    mse = mse / PUBLISHED[name].unit ** 2
    counted = int(np.argmin(loss))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(outcome.params))
    errors = (int(updates[counted]), float(loss[counted]), float(mse[counted]), float(mse[-1]))
    return (name, model, seed, *errors, parameters, outcome.seconds), {"updates": updates, "loss": loss, "mse": mse}


def network_of(config: Config, name: str, model: str, num_targets: int) -> nn.Module:
    """A model with the sizes of the levels that were released for a set; a flat one has the same layers.

    Args:
        config: of everything.
        name: of the set.
        model: its name.
        num_targets: numbers that are predicted for each chunk.

    Returns:
        The module. Mamba's blocks have no dropout, as in the released code.
    """
    levels, published = read_name(model), PUBLISHED[name]

    def size(kind: str, width: int, layers: int) -> LevelSize:
        dropout = 0.0 if kind == "mamba" else config.dropout
        states = config.state_size or _STATES.get(kind, 1)
        return LevelSize(config.width or width, config.layers or layers, states, config.heads, dropout)

    upper, lower = size(levels.high, *published.upper), size(levels.low, *published.lower)
    return model_of(levels, upper, num_targets, FREQ_RATIO, lower)


def examples_of(name: str, train: Sequence[Recording], prepare: Preparation, seed: int) -> grain.MapDataset:
    """Examples in an endless order; those of RoNIN with a heading that is drawn anew each time.

    Args:
        name: of the set.
        train: recordings.
        prepare: recording -> example.
        seed: of the order and the headings.

    Returns:
        The dataset.
    """
    order = examples(train, seed=seed)
    if name == "ronin":
        order = order.random_map(lambda recording, rng: turned(recording, rng.uniform(0, 2 * np.pi)))
    return order.map(prepare)


def training_task(model: Any, prepare: Preparation, held_out: Sequence[Recording], batch_size: int) -> Task:
    """Squared errors of standardised targets, over the chunks that are real.

    No model needs to know what is padding: it stands behind all that is real, and all models are causal.

    Args:
        model: samples (B, L, C) -> (B, T, Y).
        prepare: recording -> example.
        held_out: recordings.
        batch_size: recordings that are evaluated at once.

    Returns:
        The task.
    """
    example = prepare(held_out[0])

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.asarray(example["inputs"])[None])["params"]

    def loss(params: Any, batch: Any, key: jax.Array) -> Loss:
        told = model.apply({"params": params}, batch["inputs"], rngs={"dropout": key})
        real = batch["chunks"].sum()
        return Loss(squared_errors(told, batch).mean(axis=-1).sum() / real, weight=real)

    return Task(init, loss, _evaluation(model, prepare, held_out, batch_size))


def squared_errors(told: jax.Array, batch: Any) -> jax.Array:
    """Sums over the real chunks of each recording, (B, Y), of predictions (B, T, Y)."""
    real = jnp.arange(told.shape[1])[None] < batch["chunks"][:, None]
    return jnp.where(real[..., None], (told - batch["targets"]) ** 2, 0).sum(axis=1)


def _evaluation(
    model: Any, prepare: Preparation, held_out: Sequence[Recording], batch_size: int
) -> Callable[[Any], dict[str, float]]:
    """Parameters -> errors of the standardised targets and of the targets themselves, over all real chunks."""
    scale: Scale = prepare.targets
    square = jnp.asarray(scale.size**2, jnp.float32)

    def sums(params: Any, batch: Any) -> dict[str, jax.Array]:
        errors = squared_errors(model.apply({"params": params}, batch["inputs"]), batch)
        return {LOSS: errors.mean(axis=-1), MSE: (square[None] * errors).mean(axis=-1), "chunks": batch["chunks"]}

    mean = validation(sums, grain.MapDataset.source(held_out).map(prepare), batch_size)

    def evaluate(params: Any) -> dict[str, float]:
        found = mean(params)
        return {name: found[name] / found["chunks"] for name in (LOSS, MSE)}

    return evaluate
