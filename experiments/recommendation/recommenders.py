"""What a recommender is trained on, and how it scores the next item: one record for all kinds.

A batch is rows of `Stretches`, so that a loss reads its histories from the array of all sessions, on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.baselines.recommenders import items_mask
from experiments.sources.sessions import Sessions, Stretches, read
from lightnet.heads import MaskedLM
from ssm.sigma import real_items

LAST_ALONE = 0.1
"""Share of the rows of a Cloze in which only the last item is hidden, as when the next item is asked for."""


@dataclass(frozen=True)
class Recommender:
    """A model with its objective.

    Attributes:
        init: random key -> parameters.
        loss: (parameters, history (B, T), following items (B, T), lengths (B,), random key) -> scalar.
        scores: (parameters, history (B, T), lengths (B,)) -> (B, items).
        window: T.
        examples: sessions -> the stretches whose rows are trained on.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[..., jax.Array]
    scores: Callable[..., Any]
    window: int
    examples: Callable[[Sessions], Stretches]

    def loss_of_rows(self, stretches: Stretches) -> Callable[..., jax.Array]:
        """(parameters, rows (B,), key, ids of all sessions (N,)) -> scalar, as `train_together` takes it."""
        start, stop = (jnp.asarray(places, jnp.int32) for places in stretches)

        def loss(params: Any, rows: jax.Array, key: jax.Array, items: jax.Array) -> jax.Array:
            history, following = read(items, start[rows], stop[rows], self.window)
            return self.loss(params, history, following, stop[rows] - start[rows], key)

        return loss

    def scores_of(self, params: Any, items: Any, stretches: Stretches) -> jax.Array:
        """Scores (n, items) of what follows each stretch of the ids of all sessions."""
        start, stop = (jnp.asarray(places) for places in stretches)
        history, _ = read(jnp.asarray(items), start, stop, self.window)
        return self.scores(params, history, jnp.asarray(stretches.lengths))


def next_items(model: MaskedLM, window: int) -> Recommender:
    """A causal model that predicts the next item at every place of a history: SASRec's task, with all items as others.

    Args:
        model: ids (B, L) -> scores (B, L, items).
        window: items of a history at most.

    Returns:
        The recommender.
    """

    def loss(params: Any, history: Any, following: Any, lengths: Any, key: Any) -> jax.Array:
        logits = model.apply(params, history, mask=items_mask(model, lengths, window), rngs={"dropout": key})
        return _mean_cross_entropy(logits, following, real_items(lengths, window))

    def scores(params: Any, history: Any, lengths: Any) -> jax.Array:
        logits: Any = model.apply(params, history, mask=items_mask(model, lengths, window))
        return _at(logits, lengths - 1)

    return Recommender(_init(model, window), loss, scores, window, lambda sessions: sessions.trained(window))


def cloze(model: nn.Module, hidden_id: int, window: int, share: float) -> Recommender:
    """A model that predicts hidden items of a history from those that are not: BERT4Rec's task.

    The next item is hidden behind the history. So that a model meets this in training too, one row in ten has its last
    item hidden and no other.

    Args:
        model: (ids (B, L), mask) -> scores (B, L, items).
        hidden_id: that stands for a hidden item.
        window: items of a history at most.
        share: of the items that are hidden.

    Returns:
        The recommender.
    """

    def loss(params: Any, history: Any, following: Any, lengths: Any, key: Any) -> jax.Array:
        del following
        of_hidden, of_dropout = jax.random.split(key)
        hidden = cloze_places(of_hidden, lengths, window, share)
        seen = jnp.where(hidden, hidden_id, history)
        logits = model.apply(params, seen, mask=real_items(lengths, window), rngs={"dropout": of_dropout})
        return _mean_cross_entropy(logits, history, hidden)

    return Recommender(
        _init(model, window + 1),
        loss,
        _scores_behind(model, hidden_id, window),
        window,
        lambda sessions: sessions.kept(2, window),
    )


def cloze_places(key: jax.Array, lengths: jax.Array, window: int, share: float) -> jax.Array:
    """Which items a Cloze hides: each with the same probability, or in one row of ten the last one alone.

    Args:
        key: random key.
        lengths: (B,), items of each row.
        window: places T.
        share: probability.

    Returns:
        (B, T) booleans.
    """
    of_each, of_row = jax.random.split(key)
    each = jax.random.bernoulli(of_each, share, (len(lengths), window)) & real_items(lengths, window)
    alone = jax.random.bernoulli(of_row, LAST_ALONE, (len(lengths), 1))
    return jnp.where(alone, jnp.arange(window)[None] == lengths[:, None] - 1, each)


def hidden_next(model: nn.Module, hidden_id: int, window: int) -> Recommender:
    """The same model, of which only the item behind a history is asked, the history ending anywhere.

    Args:
        model: (ids (B, L), mask) -> scores (B, L, items).
        hidden_id: that stands for a hidden item.
        window: items of a history at most.

    Returns:
        The recommender.
    """
    behind = _scores_behind(model, hidden_id, window)

    def loss(params: Any, history: Any, following: Any, lengths: Any, key: Any) -> jax.Array:
        of_end, of_dropout = jax.random.split(key)
        ends = 1 + jnp.floor(jax.random.uniform(of_end, lengths.shape) * lengths).astype(lengths.dtype)
        logits = behind(params, history, ends, rngs={"dropout": of_dropout})
        return optax.softmax_cross_entropy_with_integer_labels(logits, _at(following, ends - 1)).mean()

    return Recommender(_init(model, window + 1), loss, behind, window, lambda sessions: sessions.trained(window))


def last_of_prefixes(model: nn.Module, window: int) -> Recommender:
    """A model that predicts the item behind a history, trained on every history that there is: SIGMA's task.

    Args:
        model: (ids (B, T), lengths (B,)) -> scores (B, items).
        window: items of a history at most.

    Returns:
        The recommender.
    """

    def loss(params: Any, history: Any, following: Any, lengths: Any, key: Any) -> jax.Array:
        logits: Any = model.apply(params, history, lengths, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, _at(following, lengths - 1)).mean()

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, window), jnp.int32), jnp.ones(1, jnp.int32))

    return Recommender(init, loss, model.apply, window, lambda sessions: sessions.prefixes(window))


def _init(model: nn.Module, places: int) -> Callable[[jax.Array], Any]:
    return lambda key: model.init(key, jnp.zeros((1, places), jnp.int32))


def _at(values: jax.Array, places: jax.Array) -> jax.Array:
    """values (B, L, ...) at one place of each row."""
    return values[jnp.arange(len(values)), places]


def _scores_behind(model: nn.Module, hidden_id: int, window: int) -> Callable[..., jax.Array]:
    """(parameters, history, lengths) -> scores of an item that is hidden behind each history."""

    def scores(params: Any, history: Any, lengths: Any, **options: Any) -> jax.Array:
        places = jnp.arange(window + 1)[None]
        seen = jnp.where(places == lengths[:, None], hidden_id, jnp.pad(history, ((0, 0), (0, 1))))
        logits: Any = model.apply(params, seen, mask=places <= lengths[:, None], **options)
        return _at(logits, lengths)

    return scores


def _mean_cross_entropy(logits: Any, labels: jax.Array, counted: jax.Array) -> jax.Array:
    """Over the places that count, 0 where there are none."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
    return jnp.sum(jnp.where(counted, losses, 0.0)) / jnp.maximum(counted.sum(), 1)


def trained_scores(
    config: Any, recommender: Recommender, sessions: list[Sessions], folder: Any, *, seeds: tuple[int, ...], label: str
) -> tuple[np.ndarray, Any, float]:
    """Train one model per seed, each on its own sessions, and score the last item of every user.

    Args:
        config: of the training.
        recommender: what is trained.
        sessions: a set for each seed, of the same lengths.
        folder: for checkpoints and metrics.
        seeds: one per model.
        label: shown beside the progress.

    Returns:
        Scores (seeds, users, items), the stacked parameters, and seconds of all trainings.
    """
    from experiments.recommendation.data import stacked
    from experiments.training.together import mapped, train_together

    items, examples = jnp.asarray(stacked(sessions)), recommender.examples(sessions[0])
    outcome = train_together(
        config,
        recommender.init,
        recommender.loss_of_rows(examples),
        len(examples.stop),
        folder,
        seeds=seeds,
        label=label,
        own=(items,),
    )
    asked = sessions[0].kept(1, recommender.window)
    scores = jax.jit(mapped(lambda params, own: recommender.scores_of(params, own, asked), 1))
    return np.asarray(scores(outcome.params, items)), outcome.params, outcome.seconds
