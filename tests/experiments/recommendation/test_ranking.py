"""HR, NDCG and MRR: an example of five items by hand, ties, and expectations by brute force."""

import numpy as np
import pytest

from experiments.recommendation.ranking import expected, gains, measured, ranks, without_history

# Four users and five items; the right ones are 0, 2, 4 and 1.
SCORES = np.array(
    [
        [0.9, 0.1, 0.2, 0.3, 0.4],  # the best: rank 1
        [0.5, 0.4, 0.3, 0.6, 0.7],  # four are above: rank 5
        [0.8, 0.2, 0.1, 0.0, 0.7],  # one is above: rank 2
        [0.1, 0.5, 0.5, 0.5, 0.0],  # the best of three that are equal: rank 3
    ]
)
TARGETS = np.array([0, 2, 4, 1])


def test_five_items_by_hand():
    assert ranks(SCORES, TARGETS).tolist() == [1, 5, 2, 3]
    found = {name: np.asarray(value) for name, value in measured(SCORES, TARGETS, cutoff=3).items()}
    np.testing.assert_allclose(found["HR"], [1, 0, 1, 1])
    np.testing.assert_allclose(found["NDCG"], [1, 0, 1 / np.log2(3), 1 / 2], rtol=1e-6)
    np.testing.assert_allclose(found["MRR"], [1, 0, 1 / 2, 1 / 3], rtol=1e-6)
    # at ten nothing is cut off
    np.testing.assert_allclose(measured(SCORES, TARGETS)["NDCG"][1], 1 / np.log2(6), rtol=1e-6)
    np.testing.assert_allclose(measured(SCORES, TARGETS)["MRR"].mean(), (1 + 1 / 5 + 1 / 2 + 1 / 3) / 4, rtol=1e-6)


def test_the_cutoff_is_the_last_rank_that_counts():
    assert [float(x) for x in gains(np.array([10, 11]))["HR"]] == [1, 0]


def test_equal_scores_and_scores_that_are_no_numbers_rank_last():
    alike = np.ones((1, 5))
    assert ranks(alike, np.array([2])).tolist() == [5]
    alike[0, 2] = np.nan
    assert ranks(alike, np.array([2])).tolist() == [5]
    assert ranks(alike, np.array([1])).tolist() == [5]


def test_expectations_are_sums_over_the_right_item():
    rng = np.random.default_rng(0)
    scores, law = rng.integers(0, 9, (4, 15)).astype(float), rng.dirichlet(np.ones(15), 4)
    found = expected(scores, law)
    for name, value in found.items():
        slow = sum(law[:, item] * np.asarray(measured(scores, np.full(4, item))[name]) for item in range(15))
        np.testing.assert_allclose(value, slow, rtol=1e-5)


@pytest.mark.parametrize("length", [0, 2])
def test_items_of_the_history_are_taken_out_and_padding_is_not(length):
    found = np.asarray(without_history(np.ones((1, 5)), np.array([[3, 1, 0]]), np.array([length])))
    assert np.isinf(found[0]).tolist() == [False, length > 0, False, length > 0, False]
