"""Models of one kind, one per seed, trained on fresh texts of a source and evaluated on fixed ones.

No text is seen twice: every update draws its own from the seed's random key, on the device, so the loss on the training
text has no memory to hide in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.config import TrainConfig
from experiments.training.together import mapped, train_together
from experiments.training.update import random_stream

Draw = Callable[[jax.Array], Any]
"""A random key -> one batch of training texts, whatever the loss takes."""


@dataclass(frozen=True)
class Curves:
    """Losses on the evaluation texts, and the trained models.

    Attributes:
        step: updates done, (T,).
        metrics: name -> (seeds, T).
        params: stacked, the seeds as the leading axis.
    """

    step: np.ndarray
    metrics: dict[str, np.ndarray]
    params: Any


def train_on_source(
    config: TrainConfig,
    init: Callable[[jax.Array], Any],
    loss: Callable[[Any, Any], jax.Array],
    draw: Draw,
    folder: str | Path,
    *,
    seeds: Sequence[int],
    label: str,
    evaluation: Sequence[Any],
    measure: Callable[[Any, Any], dict[str, jax.Array]],
) -> Curves:
    """Train one model per seed on batches drawn anew for every update.

    Args:
        config: of the training; gradients are not clipped.
        init: random key -> parameters of one model.
        loss: (parameters, batch) -> scalar.
        draw: key -> batch.
        folder: for checkpoints and metrics.
        seeds: one per model.
        label: shown beside the progress.
        evaluation: one evaluation set per seed, pytrees of arrays of equal shapes.
        measure: (parameters, evaluation set) -> scalars by name.

    Returns:
        The curves.

    Raises:
        ValueError: there is not one evaluation set per seed.
    """
    if len(evaluation) != len(seeds):
        raise ValueError(f"evaluation: got {len(evaluation)} sets, expected one for each of {len(seeds)} seeds")
    evaluate = _measuring(measure, evaluation, seeds)
    # The rows of the loop only count: what a model sees comes from its key.
    outcome = train_together(
        config,
        init,
        lambda params, rows, key: loss(params, draw(key)),
        config.batch_size,
        folder,
        seeds=seeds,
        label=label,
        evaluate=evaluate,
    )
    step, history = np.asarray(outcome.evaluation["step"]), outcome.evaluation
    # Not those of the history, which has none where a training is only written down, for a plan.
    names = dict.fromkeys(name.rpartition(", seed ")[0] for name in jax.eval_shape(evaluate, outcome.params))
    metrics = {name: np.stack([np.asarray(history[_name(name, seed)]) for seed in seeds]) for name in names}
    return Curves(step, metrics, outcome.params)


def _measuring(
    measure: Callable[[Any, Any], dict[str, jax.Array]], evaluation: Sequence[Any], seeds: Sequence[int]
) -> Callable[[Any], dict[str, jax.Array]]:
    """Stacked parameters -> each scalar of each seed, under a name of its own."""
    sets = jax.tree.map(lambda *leaves: jnp.stack(leaves), *evaluation)

    @jax.jit
    def measured(params: Any) -> dict[str, jax.Array]:
        values = mapped(measure, 1)(params, sets)
        return {_name(name, seed): each[i] for name, each in values.items() for i, seed in enumerate(seeds)}

    return measured


def _name(metric: str, seed: int) -> str:
    return f"{metric}, seed {seed}"


def evaluation_texts(sample: Callable[..., jax.Array], seeds: Sequence[int], rows: int, length: int) -> list[jax.Array]:
    """Fixed fresh texts of each seed.

    Args:
        sample: of a source, (key, (rows, length)) -> symbols.
        seeds: one set each.
        rows: texts of each.
        length: symbols of a text.

    Returns:
        One array (rows, length) per seed.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> [texts.shape for texts in evaluation_texts(SwitchingSource(1, 0.2, 0.3).sample, (0, 1), 3, 5)]
        [(3, 5), (3, 5)]
    """
    return [sample(random_stream(seed, "evaluation"), (rows, length)) for seed in seeds]


def escape_steps(step: np.ndarray, losses: np.ndarray, plateau: float, optimum: float) -> np.ndarray:
    """First evaluation at which each loss is below the middle between a plateau and the optimum.

    Args:
        step: (T,) updates done.
        losses: (..., T).
        plateau: loss that is left.
        optimum: loss that is approached.

    Returns:
        (...,) steps; the last step where that never happens.

    Example:
        >>> losses = np.array([[0.9, 0.7, 0.5], [0.9, 0.7, 0.7]])
        >>> escape_steps(np.array([0, 10, 20]), losses, 0.7, 0.5).tolist()
        [20, 20]
    """
    left = losses < (plateau + optimum) / 2
    first = np.where(left.any(axis=-1), left.argmax(axis=-1), len(step) - 1)
    return step[first]
