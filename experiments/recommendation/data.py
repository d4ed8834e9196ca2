"""The generated sessions that results here are about, and how models of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from experiments.sources.sessions import SecondOrderItems, Sessions

POPULARITY, MARKOV, SOURCE = REFERENCES = ("popularity", "Markov chain", "the source itself")


@dataclass(frozen=True)
class Generated:
    """Users, items and the chain that draws sessions."""

    users: int = 500
    """How many."""
    items: int = 200
    """How many."""
    shortest: int = 5
    """Items of a session at least; the lengths of users go round."""
    longest: int = 20
    """At most."""
    rank: int = 4
    """Of the chain's logits."""
    sharpness: float = 4.0
    """Standard deviation of the chain's logits."""
    popularity: float = 0.5
    """Exponent of the items' popularity."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("users", "rank"):
            require(name, getattr(self, name), 1)
        require("items", self.items, 2)
        require("shortest", self.shortest, 4, self.longest)
        for name in ("sharpness", "popularity"):
            require(name, getattr(self, name), 0)

    @property
    def most(self) -> int:
        """Items of the longest session that a user has; few users do not get to `longest`."""
        return min(self.longest, self.shortest + self.users - 1)


def recipe(steps: int, batch_size: int) -> TrainConfig:
    """How the models are trained: Adam at a constant rate.

    Example:
        >>> recipe(3, 2).optimizer.learning_rate
        0.003
    """
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        eval_every=0,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant", b2=0.999, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=0),
    )


def drawn(config: Generated, seed: int) -> tuple[SecondOrderItems, Sessions]:
    """A chain and the sessions that it draws, functions of the seed.

    Args:
        config: of both.
        seed: of both.

    Returns:
        The chain and the sessions.

    Example:
        >>> drawn(Generated(users=3, items=5, longest=6), 0)[1].lengths.tolist()
        [5, 6, 5]
    """
    import jax

    from experiments.sources.sessions import generated_sessions, second_order_items

    of_law, of_sessions = jax.random.split(jax.random.key(seed, impl="rbg"))
    law = second_order_items(of_law, config.items, config.rank, config.sharpness, config.popularity)
    return law, generated_sessions(of_sessions, law, config.users, config.shortest, config.longest)


def law_of_last(law: SecondOrderItems, sessions: Sessions) -> np.ndarray:
    """Probabilities (users, items) of each user's last item, given those before it.

    Args:
        law: that drew the sessions.
        sessions: of all users.

    Returns:
        Rows with the sum 1.
    """
    last = sessions.offsets[1:] - 1
    older, newer = (sessions.items[last - back] for back in (2, 1))
    return np.exp(np.asarray(law.log_law(older, newer)))


def reference_scores(sessions: Sequence[Sessions], law: np.ndarray) -> dict[str, np.ndarray]:
    """What scores the last item of each user without a model: counts of what is trained on, and the law itself.

    Args:
        sessions: sets of them.
        law: (sets, users, items), of the last item, see `law_of_last`.

    Returns:
        Scores (sets, users, items) by the names in REFERENCES; those of the Markov chain follow the last item but one.

    Example:
        >>> from experiments.sources.sessions import Sessions
        >>> sessions, law = Sessions(np.array([1, 1, 2, 0, 0]), np.array([0, 5])), np.full((1, 1, 3), 1 / 3)
        >>> scores = reference_scores([sessions], law)
        >>> scores["popularity"].tolist(), scores["Markov chain"].round(2).tolist()
        ([[[0, 2, 1]]], [[[0.0, 0.67, 0.33]]])
    """
    from experiments.baselines.item_counts import popularity, transitions

    items = law.shape[-1]
    often = np.stack([popularity(own, items) for own in sessions])
    chain = np.stack([transitions(own, items)[own.items[own.offsets[1:] - 2]] for own in sessions])
    return dict(zip(REFERENCES, (np.broadcast_to(often[:, None], law.shape), chain, law), strict=True))


def stacked(sessions: list[Sessions]) -> Any:
    """Ids (sets, N) of sessions that have the same lengths in each set."""
    return np.stack([own.items for own in sessions])
