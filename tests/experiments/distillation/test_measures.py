"""Calibration, entropies and agreement against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.measures import beside, calibration_error


def test_calibration_error_against_a_loop_over_bins():
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(211, 7)), rng.integers(0, 7, 211)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    confidence, right = p.max(-1), p.argmax(-1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = calibration_error(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbouring_bins_do_not_cancel():
    logits = jnp.log(jnp.array([[0.95, 0.05], [0.90, 0.10]]))
    np.testing.assert_allclose(calibration_error(logits, jnp.array([1, 0])), (0.95 + 0.10) / 2, rtol=1e-5)


def test_a_certain_network_that_is_always_wrong_has_the_error_one():
    logits = 50.0 * jax.nn.one_hot(jnp.zeros(9, int), 4)
    assert float(calibration_error(logits, jnp.ones(9, int))) == 1.0
    assert float(calibration_error(logits, jnp.zeros(9, int))) == 0.0


def test_what_is_measured_beside_a_teacher():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(50, 5)), jnp.float32) for _ in range(2))
    labels = jnp.asarray(rng.integers(0, 5, 50))
    found = {name: float(value) for name, value in beside(student, teacher, labels).items()}
    assert found["agreement"] == 100 * np.mean(np.argmax(student, 1) == np.argmax(teacher, 1))
    assert found["teacher accuracy"] == 100 * np.mean(np.argmax(teacher, 1) == np.asarray(labels))
    p = np.asarray(jax.nn.softmax(student), np.float64)
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(1).mean(), rtol=1e-5)
    own = beside(teacher, teacher, labels)
    assert float(own["agreement"]) == 100 and own["accuracy"] == own["teacher accuracy"]
    assert own["entropy"] == own["teacher entropy"] and own["calibration error"] == own["teacher calibration error"]
