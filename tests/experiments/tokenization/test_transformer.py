"""The transformer's loss is the negative log-likelihood of the row, whatever the padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tokenization.transformer import language_modelling, negative_log_likelihood, pad_rows, transformer


@pytest.fixture(scope="module")
def model():
    return transformer(3, 12, layers=1, width=8, heads=2)


@pytest.fixture(scope="module")
def variables(model):
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * random.standard_normal(leaf.shape, np.float32)), shapes)


@pytest.mark.slow
def test_rows_are_scored_like_sequences_extended_token_by_token(model, variables):
    row = [2, 0, 1, 1, 2]
    batch = pad_rows([np.array(row)], 7)
    scored = jax.jit(lambda batch: negative_log_likelihood(model, variables, batch))
    nats, other = scored(batch), scored({**batch, "tokens": np.where(batch["mask"], batch["tokens"], 2)})
    np.testing.assert_array_equal(other, nats)  # what stands in the padding has no effect
    expected, apply = [], jax.jit(model.apply)
    for position in range(len(row)):
        prefix = jnp.array([[3, *row[:position]]])
        logits = apply(variables, prefix)
        expected.append(-jax.nn.log_softmax(logits[0, -1])[row[position]])
    np.testing.assert_allclose(nats[0, :5], expected, rtol=1e-4)
    np.testing.assert_array_equal(nats[0, 5:], 0)


def test_probabilities_of_all_rows_of_a_length_sum_to_one(model, variables):
    rows = np.stack(np.meshgrid(*[np.arange(3)] * 4), -1).reshape(-1, 4)
    nats = jax.jit(lambda batch: negative_log_likelihood(model, variables, batch))(pad_rows(list(rows)))
    assert float(jnp.exp(-nats.sum(axis=1)).sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_loss_is_per_token_and_the_metric_per_symbol(model, variables):
    batch = pad_rows([np.array([0, 1, 2]), np.array([1]), np.array([2, 2]), np.array([0, 0, 0, 0])])
    task = language_modelling(model, batch, symbols=5)
    nats = float(negative_log_likelihood(model, variables, batch).sum())
    loss, metrics, _, weight = task.loss(variables, batch, None)
    assert weight == 10
    assert float(loss) == pytest.approx(nats / 10, rel=1e-5)
    assert float(metrics["per_symbol"]) == pytest.approx(nats / 20, rel=1e-5)
    assert float(task.evaluate(variables)["per_symbol"]) == pytest.approx(nats / 20, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7, pytest.param(24, marks=pytest.mark.slow)])
def test_any_number_of_evaluation_rows(model, variables, count):
    rows = [np.full(1 + i % 5, i % 3) for i in range(count)]
    batch = pad_rows(rows)
    expected = float(negative_log_likelihood(model, variables, batch).sum()) / (count * 6)
    assert float(language_modelling(model, batch, 6).evaluate(variables)["per_symbol"]) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_row_longer_than_the_rectangle_is_refused():
    with pytest.raises(ValueError, match="rows: got a row of 3 tokens, expected at most 2"):
        pad_rows([np.arange(3)], 2)
