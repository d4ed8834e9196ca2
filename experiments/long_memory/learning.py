"""One model on one memory task: trained on fresh sequences until it tells nearly all answers, one model per seed.

Evaluation sequences are fixed, each seed's own, and decide how many updates a model takes and when its training ends.
The accuracy that counts is on further sequences, which decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.initial_values import for_narrow_models
from experiments.long_memory.tasks import MemoryTask
from experiments.sources.recall import Recall
from experiments.training.config import TrainConfig
from experiments.training.mesh import make_mesh
from experiments.training.together import mapped, train_together
from experiments.training.update import random_stream
from lightnet.backbone import CausalLM

UNSOLVED = "unsolved"


@dataclass(frozen=True)
class Learned:
    """What a model reached on a task.

    Attributes:
        updates: (T,) after which it was evaluated.
        accuracy: (seeds, T), share of the answers on the evaluation sequences.
        tested: (seeds,) on the test sequences, at the end.
        params: stacked, the seeds as the leading axis.
        seconds: of the training of one seed.
    """

    updates: np.ndarray
    accuracy: np.ndarray
    tested: np.ndarray
    params: Any
    seconds: float


def updates_to(share: float, updates: np.ndarray, accuracy: np.ndarray) -> list[int | None]:
    """After how many updates each seed first told a share of the answers.

    Args:
        share: of the answers.
        updates: (T,).
        accuracy: (seeds, T).

    Returns:
        The updates of each seed, None where it never did.

    Example:
        >>> updates_to(0.95, np.array([0, 10, 20]), np.array([[0.1, 0.96, 0.94], [0.1, 0.2, 0.3]]))
        [10, None]
    """
    reached = accuracy >= share
    return [int(updates[row.argmax()]) if row.any() else None for row in reached]


def answer_loss(logits: jax.Array, batch: Recall) -> jax.Array:
    """Mean cross-entropy of the answers, nats.

    Args:
        logits: (B, L, V).
        batch: targets and where there is an answer, (B, L).

    Returns:
        A scalar.

    Example:
        >>> asked = jnp.array([[False, True]])
        >>> loss = answer_loss(jnp.zeros((1, 2, 4)), Recall(jnp.zeros((1, 2), int), jnp.zeros((1, 2), int), asked))
        >>> round(float(loss), 4)
        1.3863
    """
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], axis=-1)[..., 0]
    return -jnp.where(batch.asked, picked, 0).sum() / batch.asked.sum()


def share_right(logits: jax.Array, batch: Recall) -> jax.Array:
    """Share of the answers that have the largest logit.

    Args:
        logits: (B, L, V).
        batch: targets and where there is an answer, (B, L).

    Returns:
        A scalar from 0 to 1.

    Example:
        >>> asked = jnp.array([[False, True]])
        >>> float(share_right(jnp.eye(2)[None], Recall(None, jnp.array([[1, 1]]), asked)))
        1.0
    """
    return jnp.mean(logits.argmax(-1) == batch.targets, where=batch.asked)


def learn(
    config: TrainConfig,
    model: CausalLM,
    task: MemoryTask,
    folder: Path,
    *,
    seeds: Sequence[int],
    label: str,
    evaluation_rows: int,
) -> Learned:
    """Train one model per seed.

    Args:
        config: of the training; its `stop_metric` may be UNSOLVED, the largest share of wrong answers of any seed.
        model: what is trained.
        task: what it is trained on.
        folder: for checkpoints and metrics.
        seeds: one per model.
        label: shown beside the progress.
        evaluation_rows: sequences to evaluate on, and as many to test on; up to the batch size, or a multiple of it.

    Returns:
        What the models reached.
    """

    def initial(key: jax.Array) -> Any:
        params = model.init(key, jnp.zeros((1, task.length), jnp.int32))["params"]
        return for_narrow_models(params, model.backbone.width)

    def loss(params: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
        # The rows of the loop only count: what a model sees comes from its key.
        batch = task.draw(key, len(rows))
        logits: Any = model.apply({"params": params}, batch.tokens)
        return answer_loss(logits, batch)

    measure = _measuring(model, task, seeds, evaluation_rows, config.batch_size)
    outcome = train_together(
        config,
        initial,
        loss,
        config.batch_size,
        folder,
        seeds=seeds,
        label=label,
        evaluate=lambda params: _named(measure("evaluation", params), seeds),
    )
    columns = [np.asarray(outcome.evaluation[f"accuracy {seed}"]) for seed in seeds]
    with jax.set_mesh(make_mesh(config.mesh)):  # where it has been compiled already
        tested = np.asarray(measure("test", outcome.params))
    updates = np.asarray(outcome.evaluation["step"])
    return Learned(updates, np.stack(columns), tested, outcome.params, outcome.seconds / len(seeds))


def _named(accuracies: jax.Array, seeds: Sequence[int]) -> dict[str, jax.Array]:
    values = {f"accuracy {seed}": accuracies[i] for i, seed in enumerate(seeds)}
    return {**values, UNSOLVED: 1 - accuracies.min()}


def _measuring(
    model: CausalLM, task: MemoryTask, seeds: Sequence[int], rows: int, at_once: int
) -> Callable[[str, Any], jax.Array]:
    """(purpose, stacked parameters) -> accuracy of each seed, on sequences that its seed and the purpose decide."""
    groups = max(1, rows // at_once)

    def accuracy(params: Any, key: jax.Array) -> jax.Array:
        def of_group(key: jax.Array) -> jax.Array:
            batch = task.held_out(key, min(rows, at_once))
            logits: Any = model.apply({"params": params}, batch.tokens)
            return share_right(logits, batch)

        return jax.lax.map(of_group, jax.random.split(key, groups)).mean()

    every = jax.jit(mapped(accuracy, 1))

    def measured(purpose: str, params: Any) -> jax.Array:
        return every(params, jnp.stack([random_stream(seed, purpose) for seed in seeds]))

    return measured
