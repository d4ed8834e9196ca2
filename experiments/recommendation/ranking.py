"""HR, NDCG and MRR at ten, from the rank of the right item among all of them.

All items are ranked, those of the history too, unless they are taken out: a user may come back to an item, as users of
the generated sessions do. Among equal scores the right item is the last, so that a model that scores all alike has
the worst rank and not the best; a score that is no number ranks last as well.
"""

from typing import Any

import jax
import jax.numpy as jnp

CUTOFF = 10
METRICS = ("HR", "NDCG", "MRR")


def ranks(scores: Any, targets: Any) -> jax.Array:
    """Rank of one item of each row, from 1: how many items it is not above, itself included.

    Args:
        scores: (n, items).
        targets: (n,) ids.

    Returns:
        (n,) integers.

    Example:
        >>> ranks(jnp.array([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]]), jnp.array([2, 0])).tolist()
        [2, 3]
    """
    scores = jnp.asarray(scores)
    own = jnp.take_along_axis(scores, jnp.asarray(targets)[:, None], axis=1)
    return jnp.sum(~(own > scores), axis=1)


def gains(rank: Any, cutoff: int = CUTOFF) -> dict[str, jax.Array]:
    """What a rank r counts: HR 1, NDCG 1 / log2(1 + r) and MRR 1 / r if r is at most the cutoff, and 0 otherwise.

    With one right item the best possible DCG is 1, so that NDCG needs no further division.

    Args:
        rank: from 1, any shape.
        cutoff: of the list that is recommended.

    Returns:
        By name of the metric, of the shape of the ranks.

    Example:
        >>> {name: value.tolist() for name, value in gains(jnp.array([1, 3, 4]), cutoff=3).items()}["NDCG"]
        [1.0, 0.5, 0.0]
    """
    rank = jnp.asarray(rank)
    listed = rank <= cutoff
    values = {"HR": 1.0, "NDCG": 1 / jnp.log2(1.0 + rank), "MRR": 1.0 / rank}
    return {name: jnp.where(listed, value, 0.0) for name, value in values.items()}


def measured(scores: Any, targets: Any, cutoff: int = CUTOFF) -> dict[str, jax.Array]:
    """The metrics of each row, with one right item.

    Args:
        scores: (n, items).
        targets: (n,) ids.
        cutoff: of the list that is recommended.

    Returns:
        By name, (n,) each.
    """
    return gains(ranks(scores, targets), cutoff)


def expected(scores: Any, law: Any, cutoff: int = CUTOFF) -> dict[str, jax.Array]:
    """Mean of the metrics over the right item, where its probabilities are known: no luck of the draw is in it.

    Args:
        scores: (n, items).
        law: (n, items), probabilities of the right item.
        cutoff: of the list that is recommended.

    Returns:
        By name, (n,) each.

    Example:
        >>> scores, law = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[0.5, 0.2, 0.3]])
        >>> {name: round(float(value[0]), 6) for name, value in expected(scores, law, cutoff=2).items()}["MRR"]
        0.4
    """
    scores = jnp.asarray(scores)
    rank = jnp.sum(~(scores[:, :, None] > scores[:, None, :]), axis=2)
    return {name: jnp.sum(law * gain, axis=1) for name, gain in gains(rank, cutoff).items()}


def without_history(scores: Any, items: Any, lengths: Any) -> jax.Array:
    """Scores with those of the items that a user has had already at minus infinity.

    Args:
        scores: (n, items).
        items: (n, T) ids of the history.
        lengths: (n,), how many of them there are.

    Returns:
        (n, items).

    Example:
        >>> without_history(jnp.ones((1, 3)), jnp.array([[2, 0]]), jnp.array([1])).tolist()
        [[1.0, 1.0, -inf]]
    """
    scores, items = jnp.asarray(scores), jnp.asarray(items)
    real = jnp.arange(items.shape[1])[None] < jnp.asarray(lengths)[:, None]
    # an id that does not exist is dropped
    places = jnp.where(real, items, scores.shape[1])
    return scores.at[jnp.arange(len(scores))[:, None], places].set(-jnp.inf, mode="drop")
