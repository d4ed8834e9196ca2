"""Digits as classifiers read them, their loss without shifts, and accuracies by seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.digit_classification import CLASSES, accuracies, pixels, smoothed_loss, standardised_parts


class Linear:
    """Logits linear in all inputs."""

    def apply(self, variables, x):
        return x.reshape(len(x), -1) @ variables["params"]


def test_parts_are_standardised_by_the_training_part():
    train, test, _ = standardised_parts(500)
    assert (len(train), len(test)) == (1297, 500)
    assert float(train.images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.images.std()) == pytest.approx(1, abs=1e-5)
    assert float(test.images.mean()) != pytest.approx(0, abs=1e-4)


def test_pixels_come_row_by_row():
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    sequence = pixels(images)
    assert sequence.shape == (3, 64, 2) and (sequence[..., 1] == 1).all()
    np.testing.assert_array_equal(sequence[:, 8 * 3 + 5, 0], images[:, 3, 5, 0])


@pytest.mark.parametrize("read", [None, pixels])
def test_the_loss_is_the_cross_entropy_of_smoothed_labels(read):
    train, _, _ = standardised_parts(500)
    rows, size = np.array([3, 700, 5]), 64 if read is None else 128
    weights = 0.1 * np.random.default_rng(0).normal(size=(size, CLASSES)).astype(np.float32)
    loss = smoothed_loss(Linear(), train, shift=0, smoothing=0.2, read=read)(weights, rows, jax.random.key(0))
    images = train.images[rows] if read is None else read(train.images[rows])
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(images.reshape(3, -1) @ weights)))
    expected = -0.8 * log_p[np.arange(3), train.labels[rows]] - 0.2 * log_p.mean(axis=1)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)


def test_accuracies_are_of_each_model_by_its_seed():
    _, test, _ = standardised_parts(500)
    always = [jnp.zeros((64, CLASSES)), jnp.asarray(np.random.default_rng(0).normal(size=(64, CLASSES)), jnp.float32)]
    found = accuracies(Linear(), test, (4, 9))(jnp.stack(always))
    assert list(found) == ["accuracy 4", "accuracy 9"]
    assert found["accuracy 4"] == pytest.approx(100 * (test.labels == 0).mean(), rel=1e-6)  # all alike: the first
    right = (test.images.reshape(500, -1) @ np.asarray(always[1])).argmax(axis=1) == test.labels
    assert found["accuracy 9"] == pytest.approx(100 * right.mean(), abs=0.5)
