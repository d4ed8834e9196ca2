"""Runs and positions of packed and padded rows, against a loop over tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.segments import run_index, token_positions


def by_hand(ids, mask, offset):
    """Runs and positions of one row, token by token."""
    runs, positions, run, position, previous = [], [], 0, offset, None
    for token, real in zip(ids, mask, strict=True):
        if real and previous is not None and token != previous:
            run, position = run + 1, 0
        runs.append(run)
        positions.append(position)
        if real:
            previous, position = token, position + 1
    return runs, positions


@pytest.mark.parametrize("length", [1, 2, 17])
def test_runs_and_positions_equal_a_loop_over_tokens(length):
    random = np.random.default_rng(length)
    ids = random.integers(-1, 2, (50, length))
    mask = random.random((50, length)) < 0.7
    offset = random.integers(0, 9, 50)
    run = run_index(jnp.array(ids), jnp.array(mask))
    positions = token_positions(run, jnp.array(mask), jnp.array(offset, dtype=jnp.int32))
    expected = [by_hand(*row) for row in zip(ids, mask, offset, strict=True)]
    np.testing.assert_array_equal(run, [runs for runs, _ in expected])
    real_positions = np.where(mask, positions, -1)
    np.testing.assert_array_equal(real_positions, np.where(mask, [p for _, p in expected], -1))


def test_without_a_mask_every_token_is_real():
    ids = jnp.array([[4, 4, 0, 4], [1, 2, 3, 3]])
    np.testing.assert_array_equal(run_index(ids), run_index(ids, jnp.ones((2, 4), bool)))
