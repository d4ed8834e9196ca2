"""Hidden Markov models against sums over all paths; the E step against counting; what the method must do."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.hidden_markov import HiddenMarkov, baum_welch, expected_counts, log_likelihood, random_model
from experiments.sources import MarkovSource


def all_paths(model, row):
    """(path, joint probability) of every path of hidden states, in float64."""
    initial, transition, emission = (np.exp(np.asarray(part, np.float64)) for part in model)
    for path in product(range(len(initial)), repeat=len(row)):
        moves = transition[list(path[:-1]), list(path[1:])].prod()
        yield path, initial[path[0]] * moves * emission[list(path), list(row)].prod()


@pytest.mark.slow
def test_likelihood_and_counts_are_sums_over_all_paths():
    states, alphabet, length = 3, 2, 5
    rng = np.random.default_rng([states, length])
    model, rows = random_model(jax.random.key(states), states, alphabet), rng.integers(alphabet, size=(3, length))
    expected = jax.tree.map(lambda leaf: np.zeros(leaf.shape), model)
    for row, found in zip(rows, np.asarray(log_likelihood(model, jnp.asarray(rows))), strict=True):
        joint = list(all_paths(model, row))
        total = sum(weight for _, weight in joint)
        assert found == pytest.approx(np.log(total), abs=1e-5)
        for path, weight in joint:
            expected.initial[path[0]] += weight / total
            np.add.at(expected.transition, (path[:-1], path[1:]), weight / total)
            np.add.at(expected.emission, (path, row), weight / total)
    counts, _ = expected_counts(model, jnp.asarray(rows))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-4), counts, expected)


@pytest.mark.slow
def test_the_likelihood_never_falls_and_the_laws_stay_laws():
    rows = jax.random.randint(jax.random.key(1), (20, 9), 0, 3)
    model, totals = baum_welch(random_model(jax.random.key(2), 4, 3), rows, 15, pseudo_count=0.0)
    assert (np.diff(totals) > -1e-3).all() and totals[-1] > totals[0] + 1
    for part in model:
        np.testing.assert_allclose(jnp.exp(part).sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.slow
def test_a_visible_chain_is_found_by_counting():
    """Where each state has a symbol of its own, one iteration gives the transition frequencies."""
    rows = np.asarray(MarkovSource([[0.9, 0.1], [0.3, 0.7]]).sample(jax.random.key(0), (30, 40)))
    visible = jnp.log(jnp.eye(2) * (1 - 2e-7) + 1e-7)
    first = HiddenMarkov(jnp.log(jnp.full(2, 0.5)), jnp.log(jnp.full((2, 2), 0.5)), visible)
    model, _ = baum_welch(first, jnp.asarray(rows), 1, pseudo_count=0.0)
    counts = np.zeros((2, 2))
    np.add.at(counts, (rows[:, :-1].ravel(), rows[:, 1:].ravel()), 1)
    np.testing.assert_allclose(jnp.exp(model.transition), counts / counts.sum(axis=1, keepdims=True), atol=1e-4)
