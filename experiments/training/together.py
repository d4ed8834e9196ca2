"""Models of one kind trained together, one per seed: compiled once, and independent of each other.

Their parameters are stacked, and the loss is the sum of their losses. AdamW acts on each number by itself, so that as
long as gradients are not clipped by their common norm each model is trained as if it were alone. What a seed gives, its
initial values, its order of the examples and its random keys, does not depend on which other seeds are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.config import OptimizerConfig, TrainConfig
from experiments.training.loop import Outcome, train
from experiments.training.task import Metrics, Task
from experiments.training.update import random_stream

OneLoss = Callable[..., jax.Array]


def orders(seeds: Sequence[int], count: int) -> dict[str, np.ndarray]:
    """Rows that each model sees instead of each of `count` rows: one permutation per seed.

    The loop's own order of the rows is the same for all models; behind a permutation of its own each model meets the
    examples in another order, and in other batches.

    Args:
        seeds: one per model.
        count: examples.

    Returns:
        Column "rows", (count, models) int32.

    Example:
        >>> sorted(orders((0, 1), 3)["rows"][:, 1].tolist())
        [0, 1, 2]
    """
    permutations = [np.random.default_rng([seed, count]).permutation(count) for seed in seeds]
    return {"rows": np.stack(permutations, axis=1).astype(np.int32)}


def mapped(function: Callable[..., Any], at_once: int) -> Callable[..., Any]:
    """The function over the leading axes of its arguments, `at_once` models at a time.

    Args:
        function: of one model.
        at_once: 1 takes the models one after the other, which is the fastest on a CPU.

    Returns:
        The function of all models.

    Example:
        >>> mapped(lambda x, y: x + y, 1)(jnp.arange(2), jnp.arange(2)).tolist()
        [0, 2]
    """
    batch_size = at_once if at_once > 1 else None
    return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments, batch_size=batch_size)


def summed_losses(
    loss: OneLoss, at_once: int, own: tuple[Any, ...] = ()
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """Sum of the losses of stacked models, whose gradients are taken model by model within the forward pass.

    The backward pass of a map would store what each model keeps for its own, which takes twice the time on a CPU.

    Args:
        loss: (parameters, rows (B,), key, and what is its own) -> scalar, of one model.
        at_once: see `mapped`.
        own: what each model has for itself, stacked.

    Returns:
        (stacked parameters, rows (models, B), keys (models,)) -> scalar.

    Example:
        >>> total = summed_losses(lambda w, rows, key: (w * rows.sum()) ** 2, 1)
        >>> rows, keys = jnp.array([[1], [2]]), jax.random.split(jax.random.key(0))
        >>> jax.grad(total)(jnp.array([1.0, 1.0]), rows, keys).tolist()
        [2.0, 8.0]
    """

    @jax.custom_vjp
    def total(params: Any, rows: jax.Array, keys: jax.Array) -> jax.Array:
        return mapped(loss, at_once)(params, rows, keys, *own).sum()

    def forward(params: Any, rows: jax.Array, keys: jax.Array) -> tuple[jax.Array, Any]:
        losses, gradients = mapped(jax.value_and_grad(loss), at_once)(params, rows, keys, *own)
        return losses.sum(), gradients

    def backward(gradients: Any, given: jax.Array) -> tuple[Any, None, None]:
        return jax.tree.map(lambda leaf: given * leaf, gradients), None, None

    total.defvjp(forward, backward)
    return total


def train_together(
    config: TrainConfig,
    init: Callable[[jax.Array], Any],
    loss: OneLoss,
    count: int,
    folder: str | Path,
    *,
    seeds: Sequence[int],
    label: str,
    at_once: int = 1,
    evaluate: Callable[[Any], Metrics] | None = None,
    own: tuple[Any, ...] = (),
) -> Outcome:
    """Train one model per seed.

    Args:
        config: of the training; `optimizer.clip_norm` is 0, and the metric "loss" is the mean over the models.
        init: random key -> parameters of one model.
        loss: (parameters, rows (B,), key) -> scalar, of one model; `rows` are indices of examples.
        count: examples.
        folder: for checkpoints and metrics.
        seeds: one per model.
        label: shown beside the progress.
        at_once: see `mapped`.
        evaluate: stacked parameters -> scalars, see `Task`; None evaluates nothing.
        own: what each model has for itself, such as data of its own, arrays with the models as their leading axis. They
            are further arguments of the loss; no record is kept of them.

    Returns:
        The outcome, whose parameters have the models as their leading axis.

    Raises:
        ValueError: gradients shall be clipped.
    """
    if isinstance(config.optimizer, OptimizerConfig) and config.optimizer.clip_norm:
        raise ValueError(
            f"train.optimizer.clip_norm: got {config.optimizer.clip_norm}, expected 0 for models trained together"
        )
    total = summed_losses(loss, at_once, own)
    streams = [random_stream(seed, "initialisation") for seed in seeds]

    def stacked(key: jax.Array) -> Any:
        del key  # each model has its own
        return jax.vmap(lambda own: nn.meta.unbox(init(own)))(jnp.stack(streams))

    def losses(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.asarray(seeds, jnp.uint32))
        value = total(params, batch["rows"].T, keys)
        return value, {"loss of a model": value / len(seeds)}

    task = Task(init=stacked, loss=losses, evaluate=evaluate)
    return train(config, task, orders(seeds, count), folder, seed=0, label=label)


def number_of_parameters(params: Any, models: int) -> int:
    """Parameters of one of the stacked models.

    Args:
        params: stacked.
        models: how many.

    Returns:
        Their number.

    Example:
        >>> number_of_parameters({"a": jnp.zeros((2, 3))}, 2)
        3
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params)) // models


def one_of(params: Any, index: int) -> Any:
    """Parameters of one of the stacked models.

    Args:
        params: stacked.
        index: which model.

    Returns:
        Its parameters.

    Example:
        >>> one_of({"a": jnp.arange(3.0)}, 1)["a"].item()
        1.0
    """
    return jax.tree.map(lambda leaf: leaf[index], params)
