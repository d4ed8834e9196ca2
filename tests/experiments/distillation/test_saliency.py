"""Eigen-CAM against NumPy's singular vectors."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation.saliency import eigen_cam, overlap


def test_a_map_is_the_projection_on_the_first_right_singular_vector():
    features = np.random.default_rng(0).normal(size=(3, 4, 5, 7)) + 0.7
    found = np.asarray(eigen_cam(jnp.asarray(features, jnp.float32)))
    for image, map in zip(features, found, strict=True):
        places = image.reshape(20, 7)
        expected = places @ np.linalg.eigh(places.T @ places)[1][:, -1]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(map.reshape(-1), expected, atol=2e-5)


def test_a_map_does_not_depend_on_a_rotation_of_the_channels_and_scales_with_the_features():
    random = np.random.default_rng(1)
    features = random.normal(size=(2, 3, 3, 6)).astype(np.float32)
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0].astype(np.float32)
    np.testing.assert_allclose(eigen_cam(features @ rotation), eigen_cam(features), atol=1e-5)
    np.testing.assert_allclose(eigen_cam(-3 * features), 3 * eigen_cam(features), atol=1e-5)


def test_overlap_is_pearsons_correlation():
    a, b = np.random.default_rng(2).normal(size=(2, 4, 3, 5)).astype(np.float32)
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(overlap(a, b), expected, atol=1e-6)


def test_features_without_places_are_refused():
    with pytest.raises(ValueError, match="features: got 2 axes"):
        eigen_cam(jnp.zeros((2, 3)))
