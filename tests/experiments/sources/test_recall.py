"""Recall tasks: the answers are where they are said to be, and nothing but order tells them."""

import numpy as np
import pytest

from experiments.sources.recall import lagged_copy


@pytest.mark.parametrize("lag", [1, 3, 12])
def test_the_answer_stands_lag_positions_before(lag):
    task = lagged_copy(np.random.default_rng(0), (5, 13), lag=lag, alphabet=7)
    for t in range(13):
        assert task.asked[:, t].all() == task.asked[:, t].any() == (t >= lag)
        expected = task.tokens[:, t - lag] if t >= lag else np.zeros(5)
        np.testing.assert_array_equal(task.targets[:, t], expected)


def test_tokens_are_uniform_and_the_present_one_tells_nothing():
    task = lagged_copy(np.random.default_rng(1), (100, 401), lag=2, alphabet=4)
    now, before = task.tokens[task.asked], task.targets[task.asked]
    counts = np.zeros((4, 4))
    np.add.at(counts, (now, before), 1)
    expected = counts.sum() / 16
    # 16 cells of 2,500 answers each: five standard deviations.
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected))


def test_generator_decides_and_rows_can_be_drawn_in_one_go():
    draws = [lagged_copy(np.random.default_rng(s), (3, 9), lag=1, alphabet=5).tokens for s in (4, 4, 5)]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    assert draws[0].dtype == np.int32 and draws[0].max() < 5


@pytest.mark.parametrize(
    ("shape", "lag", "alphabet", "message"),
    [
        ((2, 5), 0, 4, "lag, alphabet: got 0 and 4"),
        ((2, 5), 1, 1, "lag, alphabet: got 1 and 1"),
        ((2, 5), 5, 4, r"shape: got \(2, 5\), expected"),
    ],
)
def test_what_has_no_answers_is_refused(shape, lag, alphabet, message):
    with pytest.raises(ValueError, match=message):
        lagged_copy(np.random.default_rng(0), shape, lag=lag, alphabet=alphabet)
