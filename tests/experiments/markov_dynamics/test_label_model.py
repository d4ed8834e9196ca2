"""The model of items and labels: what it sees, and its measures by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.markov_dynamics.label_model import (
    LabelModel,
    context_label_accuracy,
    label_to_item_attention,
    target_to_label_attention,
)


@pytest.mark.slow
def test_the_label_of_the_target_is_predicted_from_all_tokens_without_looking_ahead():
    model = LabelModel(labels=3, hidden=5)
    inputs = jax.random.normal(jax.random.key(0), (1, 5, 4))
    variables = jax.jit(model.init)(jax.random.key(1), inputs)
    logits, weights = jax.jit(model.apply)(variables, inputs)
    assert logits.shape == (1, 3)
    for one in weights:
        assert not np.triu(np.asarray(one[0]), 1).any()
        np.testing.assert_allclose(one.sum(axis=-1), 1, rtol=1e-5)
    influence = jax.jit(jax.jacobian(lambda x: model.apply(variables, x)[0][0].sum()))(inputs)[0]
    assert (np.abs(influence).sum(axis=-1) > 0).all()
    # Three square matrices in each of two layers, and a classifier of three hidden layers.
    size = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert size == 6 * 4**2 + (4 * 5 + 5) + 2 * (5 * 5 + 5) + (5 * 3 + 3)


def test_measures_by_enumeration():
    random = np.random.default_rng(0)
    weights = np.tril(random.random((6, 9, 9)))
    classes, labels = random.integers(0, 3, (2, 6, 5))
    predicted = random.integers(0, 3, 6)
    to_item = np.mean([weights[b, i, i - 1] for b in range(6) for i in (1, 3, 5, 7)])
    assert float(label_to_item_attention(jnp.asarray(weights))) == pytest.approx(to_item, rel=1e-5)
    to_label = np.mean(
        [sum(weights[b, 8, 2 * n + 1] for n in range(4) if classes[b, n] == classes[b, 4]) for b in range(6)]
    )
    found = target_to_label_attention(jnp.asarray(weights), jnp.asarray(classes))
    assert float(found) == pytest.approx(to_label, rel=1e-5)
    share = np.mean([predicted[b] in labels[b, :4] for b in range(6)])
    assert float(context_label_accuracy(jnp.asarray(predicted), jnp.asarray(labels))) == pytest.approx(share)
