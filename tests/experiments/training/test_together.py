"""Models trained together are those trained alone, and their gradients those of the plain sum."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.config import OptimizerConfig, TrainConfig
from experiments.training.together import orders, summed_losses, train_together

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
SETTINGS = TrainConfig(steps=5, batch_size=4, eval_every=0, optimizer=OptimizerConfig(learning_rate=0.1))


def init(key):
    return {"kernel": jax.random.normal(key, (3,))}


def loss(params, rows, key):
    noise = jax.random.normal(key, (3,))
    return jnp.mean((jnp.asarray(X)[rows] @ jnp.tanh(params["kernel"] + 0.1 * noise) - 1.0) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_gradients_are_those_of_the_plain_sum(at_once):
    params = jax.vmap(init)(jax.random.split(jax.random.key(0), 3))
    rows, keys = jnp.asarray(orders((0, 1, 2), 12)["rows"][:4].T), jax.random.split(jax.random.key(1), 3)
    expected = jax.value_and_grad(lambda p: 2.0 * jax.vmap(loss)(p, rows, keys).sum())(params)
    got = jax.value_and_grad(lambda p: 2.0 * summed_losses(loss, at_once)(p, rows, keys))(params)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(got[1]["kernel"], expected[1]["kernel"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_model_does_not_depend_on_those_beside_it(tmp_path):
    both = train_together(SETTINGS, init, loss, 12, tmp_path / "both", seeds=(3, 8), label="both")
    alone = train_together(SETTINGS, init, loss, 12, tmp_path / "alone", seeds=(8,), label="alone")
    np.testing.assert_allclose(both.params["kernel"][1], alone.params["kernel"][0], rtol=1e-5)
    assert abs(both.params["kernel"][0] - both.params["kernel"][1]).max() > 0.01


def test_models_are_evaluated_together(tmp_path):
    settings = replace(SETTINGS, eval_every=2)
    outcome = train_together(
        settings, init, loss, 12, tmp_path, seeds=(3, 8), label="both", evaluate=lambda p: {"w": p["kernel"][1, 0]}
    )
    assert outcome.evaluation["step"].tolist() == [0, 2, 4, 5]
    assert outcome.evaluation["w"][-1] == outcome.params["kernel"][1, 0]


def test_each_model_has_an_order_of_its_own():
    rows = orders((0, 1), 50)["rows"]
    assert sorted(rows[:, 0]) == sorted(rows[:, 1]) == list(range(50))
    assert (rows[:, 0] == rows[:, 1]).sum() < 10
    np.testing.assert_array_equal(orders((1,), 50)["rows"][:, 0], rows[:, 1])


def test_a_common_norm_of_the_gradients_is_refused(tmp_path):
    clipped = replace(SETTINGS, optimizer=replace(SETTINGS.optimizer, clip_norm=1.0))
    with pytest.raises(ValueError, match=r"clip_norm: got 1\.0, expected 0"):
        train_together(clipped, init, loss, 12, tmp_path, seeds=(0,), label="clipped")


def test_each_model_learns_from_data_of_its_own(tmp_path):
    """The loss is that of a mean, so that each model ends at that of its own numbers."""
    numbers = jnp.array([[1.0, 1.0, 4.0], [-7.0, 2.0, 2.0]])

    def from_own(params, rows, key, own):
        del key
        return jnp.sum((params["kernel"][None] - own[rows][:, None]) ** 2)

    settings = replace(SETTINGS, steps=200, batch_size=3, optimizer=OptimizerConfig(learning_rate=0.2, weight_decay=0))
    outcome = train_together(settings, init, from_own, 3, tmp_path, seeds=(3, 8), label="own", own=(numbers,))
    np.testing.assert_allclose(outcome.params["kernel"], np.repeat([[2.0], [-1.0]], 3, axis=1), atol=0.1)
