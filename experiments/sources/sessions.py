"""Sessions, the items of each user in the order of time: generated ones whose law is known, and how any are split.

Sessions of all users lie one behind the other in one array, and a history is a stretch of it. The last item of each
user is kept for the test, the one before for validation ("leave one out"), and what is before them is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FEWEST = 4  # items of a session: one to begin with, one to learn, and the two that are kept


class SecondOrderItems(NamedTuple):
    """A Markov chain of second order over items; logits of the next are popularity + (last[b] + older[a]) @ items.T.

    Attributes:
        last: (items, rank), of the last item b.
        older: (items, rank), of the one before, a.
        items: (items, rank), of the next one.
        popularity: (items,), logits that do not depend on the history.
    """

    last: Any
    older: Any
    items: Any
    popularity: Any

    def log_law(self, older: Any, last: Any) -> jax.Array:
        """Log probabilities of the next item (..., items) after two (...)."""
        logits = (self.last[last] + self.older[older]) @ self.items.T
        return jax.nn.log_softmax(logits + jnp.expand_dims(self.popularity, range(logits.ndim - 1)))


def second_order_items(
    key: jax.Array, items: int, rank: int, sharpness: float, popularity: float = 0.0
) -> SecondOrderItems:
    """Draw a chain with normal factors, in which the last item is twice as important as the one before.

    Args:
        key: random key.
        items: how many.
        rank: of the logits.
        sharpness: standard deviation of the logits.
        popularity: exponent p of probabilities proportional to 1 / rank^p that logits are added to; 0 has none.

    Returns:
        The chain.

    Example:
        >>> law = second_order_items(jax.random.key(0), 5, 2, 1.0, popularity=1.0)
        >>> law.log_law(jnp.array([0, 1, 2]), jnp.array([3, 4, 0])).shape
        (3, 5)
    """
    keys = jax.random.split(key, 3)
    last, older, into = (jax.random.normal(k, (items, rank)) for k in keys)
    scale = sharpness / (1.25 * rank) ** 0.5
    return SecondOrderItems(scale * last, scale / 2 * older, into, -popularity * jnp.log(jnp.arange(1, items + 1)))


def sampled_sessions(key: jax.Array, law: SecondOrderItems, number: int, length: int) -> jax.Array:
    """Sessions (number, length + 2): two items, any alike, and what follows.

    Args:
        key: random key.
        law: of the items.
        number: sessions.
        length: items that follow.

    Returns:
        Ids.
    """
    begin, rest = jax.random.split(key)
    pair = jax.random.randint(begin, (2, number), 0, law.items.shape[0])

    def step(pair: Any, key: Any) -> Any:
        item = jax.random.categorical(key, law.log_law(pair[0], pair[1]))
        return jnp.stack([pair[1], item]), item

    drawn = jax.lax.scan(step, pair, jax.random.split(rest, length))[1]
    return jnp.concatenate([pair, drawn]).T


class Stretches(NamedTuple):
    """Histories: of each the places from `start` on and before `stop`, where the item to predict stands, both (n,)."""

    start: np.ndarray
    stop: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Items of each history."""
        return self.stop - self.start


@dataclass(frozen=True)
class Sessions:
    """The items of each user, one user behind the other.

    Attributes:
        items: (N,) ids.
        offsets: (users + 1,), where each user begins, and the end.

    Raises:
        ValueError: there is no user, one has too few items, or the offsets do not go from 0 to N.

    Example:
        >>> sessions = Sessions(np.array([5, 6, 7, 8, 1, 2, 3, 4, 0]), np.array([0, 4, 9]))
        >>> sessions.kept(1, window=3).stop.tolist(), sessions.prefixes(window=2).stop.tolist()
        ([3, 8], [1, 5, 6])
    """

    items: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        """Check that there are users, that all items are somebody's, and that every user has enough of them."""
        ends = [int(place) for place in self.offsets[[0, -1]]] if len(self.offsets) > 1 else []
        if ends != [0, len(self.items)]:
            raise ValueError(
                f"offsets: got {ends or 'no user'}, expected from 0 to the number of items, {len(self.items)}"
            )
        if self.lengths.min() < FEWEST:
            raise ValueError(f"offsets: got sessions of {self.lengths.min()} items, expected at least {FEWEST}")

    @cached_property
    def lengths(self) -> np.ndarray:
        """Items of each user."""
        return np.diff(self.offsets)

    def kept(self, from_end: int, window: int) -> Stretches:
        """The history of each user before an item that is kept: the last (1, test) or the one before (2, validation).

        Args:
            from_end: which.
            window: items of a history at most, the newest.

        Returns:
            One history per user.
        """
        stop = self.offsets[1:] - from_end
        return Stretches(np.maximum(self.offsets[:-1], stop - window), stop)

    def trained(self, window: int) -> Stretches:
        """What each user is trained on, but for the last item of it, which is the one to predict at the end.

        Args:
            window: items of a history at most, the newest.

        Returns:
            One history per user.
        """
        return self.kept(3, window)

    def prefixes(self, window: int) -> Stretches:
        """The history before every item that is trained on, but for the first of each user.

        Args:
            window: items of a history at most, the newest.

        Returns:
            One history per item.
        """
        last = self.offsets[1:] - 2
        stop = np.concatenate([np.arange(begin + 1, end) for begin, end in zip(self.offsets[:-1], last, strict=True)])
        begin = np.repeat(self.offsets[:-1], self.lengths - 3)
        return Stretches(np.maximum(begin, stop - window), stop)


def generated_sessions(key: jax.Array, law: SecondOrderItems, users: int, shortest: int, longest: int) -> Sessions:
    """Sessions of a chain, whose lengths go round from the shortest to the longest.

    So all sets of sessions of as many users have as many items, whatever was drawn.

    Args:
        key: random key.
        law: of the items.
        users: how many.
        shortest: items of a session at least.
        longest: at most.

    Returns:
        The sessions.

    Raises:
        ValueError: sessions cannot have such lengths.

    Example:
        >>> law = second_order_items(jax.random.key(0), 5, 2, 1.0)
        >>> generated_sessions(jax.random.key(1), law, 4, 4, 6).lengths.tolist()
        [4, 5, 6, 4]
    """
    if not FEWEST <= shortest <= longest:
        raise ValueError(f"shortest, longest: got {shortest} and {longest}, expected {FEWEST} <= shortest <= longest")
    lengths = shortest + np.arange(users) % (longest - shortest + 1)
    drawn = np.asarray(jax.jit(sampled_sessions, static_argnums=(2, 3))(key, law, users, longest - 2))
    kept = np.arange(longest) < lengths[:, None]
    return Sessions(drawn[kept].astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))


def read(items: jax.Array, start: jax.Array, stop: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Histories and what follows each of their items.

    Args:
        items: (N,) of all users.
        start: (B,), where histories begin.
        stop: (B,), where the item after them stands; at most `window` places on.
        window: places T of a row.

    Returns:
        Ids (B, T) at the left of their rows and 0 behind them, and the ids (B, T) one place on, where there is an item.

    Example:
        >>> history, following = read(jnp.arange(10, 20), jnp.array([0, 4]), jnp.array([2, 7]), 3)
        >>> history.tolist(), following.tolist()
        ([[10, 11, 0], [14, 15, 16]], [[11, 12, 0], [15, 16, 17]])
    """
    places = start[:, None] + jnp.arange(window)[None]
    real = places < stop[:, None]

    def ahead(steps: int) -> jax.Array:
        return jnp.where(real, jnp.take(items, places + steps, mode="clip"), 0)

    return ahead(0), ahead(1)
