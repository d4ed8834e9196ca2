"""Causal language modelling of packed rows: each document of a row for itself, and no loss on what is between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grain
    import jax

    from experiments.language_models import LanguageModel
    from experiments.training.config import TrainConfig
    from experiments.training.loop import Outcome
    from experiments.training.task import Task


def packed_nats(logits: jax.Array, tokens: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nats of every token that follows one of its own segment, summed over each row, and how many these are.

    Args:
        logits: (B, L - 1, V) of the token after each position but the last.
        tokens: (B, L).
        segment_ids: (B, L), 0 at padding.

    Returns:
        (B,) sums and (B,) counts.

    Example:
        >>> import jax.numpy as jnp
        >>> tokens, ids = jnp.array([[5, 6, 7, 0]]), jnp.array([[1, 1, 2, 0]])
        >>> nats, count = packed_nats(jnp.zeros((1, 3, 8)), tokens, ids)
        >>> f"{nats[0]:.4f}", int(count[0])
        ('2.0794', 1)
    """
    import jax
    import jax.numpy as jnp

    real = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
    return -jnp.where(real, picked, 0).sum(axis=1), real.sum(axis=1)


def packed_task(model: Any, held_out: grain.MapDataset, batch_size: int) -> Task:
    """Prediction of the next token of packed rows, in nats per token.

    Args:
        model: a `lightnet.backbone.CausalLM` whose mixer takes segments.
        held_out: finite dataset of rows to evaluate on.
        batch_size: rows evaluated at once.

    Returns:
        The task.
    """
    import jax.numpy as jnp

    from experiments.training.task import Loss, Task
    from experiments.training.validation import validation

    def sums(variables: Any, batch: Mapping[str, Any], **dropping: Any) -> dict[str, Any]:
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        logits = model.apply(variables, tokens[:, :-1], segment_ids=segment_ids[:, :-1], **dropping)
        nats, count = packed_nats(logits, tokens, segment_ids)
        return {"nats": nats, "count": count}

    def loss(variables: Any, batch: Mapping[str, Any], key: Any) -> Loss:
        found = sums(variables, batch, rngs={"dropout": key})
        count = found["count"].sum()
        return Loss(found["nats"].sum() / jnp.maximum(count, 1), weight=count)

    means = validation(sums, held_out, batch_size)

    def evaluate(variables: Any) -> dict[str, float]:
        found = means(variables)
        return {"held_out": found["nats"] / found["count"]}

    return Task(init=lambda key: model.init(key, jnp.zeros((1, 8), jnp.int32)), loss=loss, evaluate=evaluate)


def train_on_rows(
    config: TrainConfig,
    model: LanguageModel,
    data: grain.MapDataset,
    held_out: grain.MapDataset,
    folder: Path,
    *,
    seed: int,
) -> Outcome:
    """Describe a model in its folder and train it on packed rows, from initial values for its width.

    Args:
        config: of the training.
        model: what to train.
        data: endless rows, see `experiments.records.order.in_training_order`.
        held_out: finite rows.
        folder: of the training; its name is the label.
        seed: of the initialisation.

    Returns:
        The outcome.
    """
    from experiments.initial_values import for_narrow_models
    from experiments.language_models import describe
    from experiments.training.loop import train

    describe(folder, model)
    task = packed_task(model.build(remat=config.remat), held_out, config.batch_size)
    created = task.init

    def init(key: Any) -> Any:
        return for_narrow_models(created(key), model.width)

    return train(config, replace(task, init=init), data, folder, seed=seed, label=folder.name)
