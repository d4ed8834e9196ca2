"""What the model on in-context chains is compared with: laws of the right symbols, distances written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.markov_dynamics.in_context_training import cross_entropy, evaluation_set, references, relative_entropy
from experiments.sources import InContextChains


@pytest.mark.slow
def test_the_evaluation_set_holds_the_laws_of_the_symbols_that_are_predicted():
    chosen = evaluation_set(InContextChains(2), 3, (40, 8))
    symbols, unigram = np.asarray(chosen["symbols"]), np.asarray(chosen["unigram"])
    assert unigram.shape == (40, 7, 2)
    for t in range(1, 8):
        ones = symbols[:, :t].sum(axis=1)
        np.testing.assert_allclose(unigram[:, t - 1, 1], (ones + 1) / (t + 2), rtol=1e-5)
    known = references([chosen])
    assert known["uniform"] == pytest.approx([np.log(2)], rel=1e-5)
    assert known["truth"][0] < min(known["bigram"][0], known["unigram"][0], known["uniform"][0])


def test_distances_written_out():
    random = np.random.default_rng(0)
    model, law = random.dirichlet([1, 1, 1], (2, 4, 5))
    expected = (model * np.log(model / law)).sum(axis=-1).mean()
    assert float(relative_entropy(jnp.log(model), jnp.asarray(law))) == pytest.approx(expected, rel=1e-4)
    assert float(relative_entropy(jnp.log(model), jnp.asarray(model))) == pytest.approx(0, abs=1e-6)
    expected = -(law * np.log(model)).sum(axis=-1).mean()
    assert float(cross_entropy(jnp.log(model), jnp.asarray(law))) == pytest.approx(expected, rel=1e-5)
