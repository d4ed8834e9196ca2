"""Recommenders that count: how often an item occurs, and how often it follows another one."""

from __future__ import annotations

import numpy as np

from experiments.sources.sessions import Sessions


def popularity(sessions: Sessions, items: int) -> np.ndarray:
    """How often each item occurs in what is trained on.

    Args:
        sessions: of all users; the last two items of each are not looked at.
        items: how many there are.

    Returns:
        (items,) counts.

    Example:
        >>> popularity(Sessions(np.array([1, 1, 2, 0, 0]), np.array([0, 5])), 4).tolist()
        [0, 2, 1, 0]
    """
    return np.bincount(sessions.items[_trained(sessions)], minlength=items)


def transitions(sessions: Sessions, items: int, prior: float = 1.0) -> np.ndarray:
    """A Markov chain of first order: P(j | i) = (n_ij + prior p_j) / (n_i + prior), p_j being popularity.

    Args:
        sessions: of all users; the last two items of each are not looked at.
        items: how many there are.
        prior: how many transitions popularity counts as.

    Returns:
        (items, items), rows of which each sums to 1.

    Example:
        >>> transitions(Sessions(np.array([1, 1, 2, 0, 0]), np.array([0, 5])), 3, prior=3.0).round(2).tolist()
        [[0.0, 0.67, 0.33], [0.0, 0.6, 0.4], [0.0, 0.67, 0.33]]
    """
    trained = _trained(sessions)
    follows = trained[1:] & trained[:-1]
    follows[sessions.offsets[1:-1] - 1] = False
    counts = np.zeros((items, items))
    np.add.at(counts, (sessions.items[:-1][follows], sessions.items[1:][follows]), 1)
    often = popularity(sessions, items)
    counts += prior * often / often.sum()
    return counts / counts.sum(axis=1, keepdims=True)


def _trained(sessions: Sessions) -> np.ndarray:
    """Which places hold items that are trained on."""
    trained = np.ones(len(sessions.items), bool)
    for from_end in (1, 2):
        trained[sessions.offsets[1:] - from_end] = False
    return trained
