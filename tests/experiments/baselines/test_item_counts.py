"""Counting recommenders: what they count, and that the items kept for validation and test are not counted."""

import numpy as np

from experiments.baselines.item_counts import popularity, transitions
from experiments.sources.sessions import Sessions

SESSIONS = Sessions(np.array([0, 1, 0, 1, 3, 3, 2, 1, 2, 1, 3]), np.array([0, 6, 11]))


def test_counts_by_hand():
    """0 1 0 1 and 2 1 2 are trained on; nothing leads from one user to the next."""
    assert popularity(SESSIONS, 4).tolist() == [2, 3, 2, 0]
    chain = transitions(SESSIONS, 4, prior=7.0)
    # row i: 2, 3, 2 and 0 for popularity, and what followed i
    expected = np.array([[2, 5, 2, 0], [3, 3, 3, 0], [2, 4, 2, 0], [2, 3, 2, 0]])
    np.testing.assert_allclose(chain, expected / expected.sum(axis=1, keepdims=True))
