"""What each item of a history attends to, averaged over users: maps as SASRec and BERT4Rec show them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.baselines.recommenders import attention_weights
from experiments.recommendation.data import stacked
from experiments.sources.sessions import Sessions, read
from experiments.training.together import mapped
from lightnet.heads import MaskedLM


def attention_maps(
    model: MaskedLM, params: Any, sessions: list[Sessions], reach: int, *, hidden_id: int | None = None
) -> np.ndarray:
    """Attention among the last items of the users who have enough, before the one that is asked.

    Args:
        model: with softmax attention.
        params: one model per set of sessions, stacked.
        sessions: a set for each model, of the same lengths.
        reach: last items that are read.
        hidden_id: that stands for the item asked behind them, for a model that predicts hidden items; else None.

    Returns:
        (seeds, blocks, L, L), L = `reach`, and one more for a hidden item: row i is what place i attends to, with the
        sum 1, a mean over users and heads.
    """
    asked = sessions[0].kept(1, reach)
    enough = asked.lengths == reach
    start, stop = (jnp.asarray(places[enough]) for places in asked)

    def one(params: Any, items: Any) -> jax.Array:
        history, _ = read(items, start, stop, reach)
        if hidden_id is not None:
            history = jnp.pad(history, ((0, 0), (0, 1)), constant_values=hidden_id)
        return attention_weights(model, params, history).mean(axis=(1, 2))

    return np.asarray(jax.jit(mapped(one, 1))(params, jnp.asarray(stacked(sessions))))


def mean_distance(maps: np.ndarray) -> np.ndarray:
    """How far back the last place looks, in items, averaged over blocks.

    sum_j (L - 1 - j) A[L - 1, j].

    Args:
        maps: (seeds, blocks, L, L).

    Returns:
        (seeds,); 0 looks at nothing but the last item.

    Example:
        >>> maps = np.array([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> mean_distance(maps).tolist()
        [0.25]
    """
    last = maps[:, :, -1].mean(axis=1)
    return (last * np.arange(last.shape[-1])[::-1]).sum(axis=-1)
