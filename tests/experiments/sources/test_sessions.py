"""Sessions: the law of generated ones, and which stretches are trained on and asked about."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sources.sessions import (
    Sessions,
    generated_sessions,
    read,
    sampled_sessions,
    second_order_items,
)


def key(seed):
    return jax.random.key(seed, impl="rbg")


@pytest.mark.parametrize("popularity", [0.0, 1.0])
def test_sessions_have_the_law_of_their_source(popularity):
    law = second_order_items(key(1), 3, 2, 1.5, popularity)
    rows = np.asarray(sampled_sessions(key(2), law, 20_000, 4))
    assert rows.shape == (20_000, 6)
    for older, last in np.ndindex(3, 3):
        after = rows[(rows[:, 2] == older) & (rows[:, 3] == last), 4]
        found = np.bincount(after, minlength=3) / len(after)
        np.testing.assert_allclose(found, np.exp(law.log_law(older, last)), atol=5 * 0.5 / len(after) ** 0.5)


def test_the_last_item_weighs_twice_as_much_as_the_one_before():
    law = second_order_items(key(5), 400, 16, 3.0)
    older, last = np.arange(100), np.arange(100, 200)
    factors = [np.asarray(factor) for factor in (law.last, law.older, law.items)]
    logits = (factors[0][last] + factors[1][older]) @ factors[2].T
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(law.log_law(older, last), expected, rtol=1e-4, atol=1e-4)
    # 6,400 numbers of each factor: the standard error of a deviation is below 1 %, that of a ratio below 2 %
    assert abs(factors[0].std() / factors[1].std() - 2) < 0.2 and abs(logits.std() / 3 - 1) < 0.2


def test_popularity_is_a_power_of_the_rank():
    law = second_order_items(key(0), 5, 2, 0.0, popularity=2.0)
    share = np.exp(law.log_law(jnp.array([3]), jnp.array([1])))[0]
    np.testing.assert_allclose(share, np.arange(1, 6) ** -2.0 / sum(np.arange(1, 6) ** -2.0), rtol=1e-5)


def test_generated_sessions_are_cut_and_functions_of_the_key():
    law = second_order_items(key(0), 7, 2, 1.0)
    sessions, again = (generated_sessions(key(3), law, 9, 4, 7) for _ in range(2))
    whole = np.asarray(sampled_sessions(key(3), law, 9, 5))
    assert sessions.lengths.tolist() == [4, 5, 6, 7, 4, 5, 6, 7, 4]
    for user, length in enumerate(sessions.lengths):
        begin = sessions.offsets[user]
        assert sessions.items[begin : begin + length].tolist() == whole[user, :length].tolist()
    np.testing.assert_array_equal(sessions.items, again.items)


def small():
    """Users 0 and 1 with five and seven items, of which each says whose it is and where."""
    return Sessions(np.concatenate([np.arange(5), 100 + np.arange(7)]), np.array([0, 5, 12]))


def histories(stretches, window):
    rows, following = read(jnp.asarray(small().items), *(jnp.asarray(x) for x in stretches), window)
    parts = zip(rows.tolist(), following.tolist(), stretches.lengths, strict=True)
    return [(row[:length], ahead[length - 1]) for row, ahead, length in parts]


def test_the_last_two_items_are_kept_and_no_training_sees_them():
    sessions = small()
    assert histories(sessions.kept(1, 3), 3) == [([1, 2, 3], 4), ([103, 104, 105], 106)]
    assert histories(sessions.kept(2, 9), 9) == [([0, 1, 2], 3), ([100, 101, 102, 103, 104], 105)]
    assert histories(sessions.trained(9), 9) == [([0, 1], 2), ([100, 101, 102, 103], 104)]
    users = [([0], 1), ([0, 1], 2)]
    others = [([100], 101), ([100, 101], 102), ([101, 102], 103), ([102, 103], 104)]
    assert histories(sessions.prefixes(2), 2) == users + others


def test_behind_a_history_are_zeros():
    rows, following = read(jnp.arange(1, 9), jnp.array([2, 0]), jnp.array([4, 1]), 3)
    assert rows.tolist() == [[3, 4, 0], [1, 0, 0]] and following.tolist() == [[4, 5, 0], [2, 0, 0]]


def test_too_short_sessions_are_refused():
    with pytest.raises(ValueError, match="offsets: got sessions of 3 items, expected at least 4"):
        Sessions(np.arange(7), np.array([0, 3, 7]))
    for offsets, got in (([0, 4, 9], "[0, 9]"), ([1, 8], "[1, 8]"), ([0], "no user")):
        with pytest.raises(
            ValueError, match=f"offsets: got {re.escape(got)}, expected from 0 to the number of items, 8"
        ):
            Sessions(np.arange(8), np.array(offsets))
    with pytest.raises(ValueError, match="shortest, longest: got 5 and 4"):
        generated_sessions(key(0), second_order_items(key(0), 3, 1, 1.0), 2, 5, 4)
