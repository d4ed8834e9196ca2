"""An epoch of each recommender as a function that can be timed: its model, its loss, and its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd
from experiments.baselines.recommenders import (
    Size,
    attention_recommender,
    hidden_states,
    items_mask,
    recurrent_recommender,
)
from experiments.recommendation.recommenders import cloze_places, last_of_prefixes
from experiments.recommendation.speed import BERT4REC, OF_PREFIXES, RECURRENT, SASREC_ALL, Config
from experiments.sources.sessions import Sessions, read
from experiments.step_time import update_program
from experiments.training.config import OptimizerConfig
from experiments.training.task import Task
from ssm import SIGMA
from ssm.sigma import real_items


class Epoch(NamedTuple):
    """Updates of one model.

    Attributes:
        run: does the next `timed` of them, with parameters that go on from call to call.
        timed: how many that are.
        updates: of a whole epoch.
    """

    run: Callable[[], Any]
    timed: int
    updates: int


def epoch_programs(config: Config, sessions: Sessions) -> dict[str, Epoch]:
    """Epochs of each model, compiled.

    Args:
        config: of models and batches.
        sessions: of all users.

    Returns:
        By name.
    """
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="constant", b2=0.98, weight_decay=0.0)

    def batches(rows: int, updates: int) -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        while True:
            # the last batch is filled up from the next order, so that all have the same shape
            order = np.concatenate([rng.permutation(rows) for _ in range(2)])
            for update in range(updates):
                yield {"rows": order[update * config.batch : (update + 1) * config.batch]}

    def epoch(name: str) -> Epoch:
        rows = len(sessions.prefixes(config.window).stop) if name == OF_PREFIXES else config.sessions.users
        updates = -(-rows // config.batch)
        update = update_program(task_of(config, sessions, name), optimizer, batches(rows, updates))
        timed = min(updates, config.timed)
        return Epoch(lambda: [update() for _ in range(timed)], timed, updates)

    return {name: epoch(name) for name in config.models}


def task_of(config: Config, sessions: Sessions, name: str) -> Task:
    """A model with its loss on rows of users, or of prefixes for SIGMA.

    Args:
        config: of the model.
        sessions: of all users.
        name: one of EPOCHS.

    Returns:
        Model and loss.
    """
    model, items = model_of(config, name), jnp.asarray(sessions.items)
    if name == OF_PREFIXES:
        recommender = last_of_prefixes(model, config.window)
        of_rows = recommender.loss_of_rows(recommender.examples(sessions))
        return Task(recommender.init, lambda params, batch, key: (of_rows(params, batch["rows"], key, items), {}))
    stretches = sessions.kept(2, config.window) if name == BERT4REC else sessions.trained(config.window)
    start, stop = (jnp.asarray(places) for places in stretches)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        first, last = start[batch["rows"]], stop[batch["rows"]]
        history, following = read(items, first, last, config.window)
        return _loss(config, name, model, params, history, following, last - first, key), {}

    return Task(lambda key: model.init(key, jnp.zeros((1, config.window), jnp.int32)), loss)


def _loss(
    config: Config, name: str, model: Any, params: Any, history: Any, following: Any, lengths: Any, key: Any
) -> Any:
    """Of the items behind each place, or of hidden ones."""
    counted, right, seen = real_items(lengths, config.window), following, history
    if name == BERT4REC:
        counted = cloze_places(key, lengths, config.window, config.hidden)
        right, seen = history, jnp.where(counted, config.sessions.items, history)
    mask = items_mask(model, lengths, config.window)
    h, W = hidden_states(model, params, seen, mask=mask, rngs={"dropout": key})
    if name in (SASREC_ALL, BERT4REC):
        return kd.chunked_cross_entropy(h, W, right, counted, token_chunk=config.token_chunk)
    return sampled_loss(h, W, right, counted, key)


def sampled_loss(h: Any, W: Any, following: Any, real: Any, key: Any) -> Any:
    """Mean over places of -log sigmoid(s_right) - log(1 - sigmoid(s_other)), SASRec's loss with one other item each.

    The other item is any, where the published code takes one that the user has not had.

    Args:
        h: states (B, T, D).
        W: of all items (V, D).
        following: right items (B, T).
        real: (B, T), places that count.
        key: random key of the other items.

    Returns:
        A number.
    """
    others = jax.random.randint(key, following.shape, 0, len(W))
    right, other = (jnp.einsum("btd,btd->bt", h, W[ids]) for ids in (following, others))
    losses = jax.nn.softplus(-right) + jax.nn.softplus(other)
    return jnp.sum(jnp.where(real, losses, 0.0)) / real.sum()


def model_of(config: Config, name: str) -> Any:
    """A recommender of the config's size; SIGMA has its one layer.

    Args:
        config: of the size.
        name: one of EPOCHS.

    Returns:
        The module.
    """
    if name == OF_PREFIXES:
        return SIGMA(config.sessions.items, width=config.width)
    size = Size(config.sessions.items, config.width, config.layers, heads=1)
    if name == RECURRENT:
        return recurrent_recommender(size)
    behind = int(name == BERT4REC)  # the item that is asked for is hidden there
    return attention_recommender(size, config.window + behind, causal=name != BERT4REC)
