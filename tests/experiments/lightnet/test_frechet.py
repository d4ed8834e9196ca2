"""The Frechet distance: closed forms, invariance, and what it refuses."""

import numpy as np
import pytest

from experiments.lightnet.frechet import frechet_distance, root


def with_moments(rng, mean, covariance, rows=50):
    """A sample whose mean and covariance are exactly the given ones."""
    x = rng.normal(size=(rows, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_one_dimension_is_the_difference_of_means_and_of_deviations():
    rng = np.random.default_rng(0)
    a, b = rng.normal(2.0, 3.0, (40, 1)), rng.normal(-1.0, 0.5, (70, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_covariances_that_commute_have_the_closed_form():
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    first, second = rng.uniform(0.1, 4.0, 5), rng.uniform(0.1, 4.0, 5)
    m, n = rng.normal(size=(2, 5))
    a, b = (with_moments(rng, mean, turn * values @ turn.T) for mean, values in ((m, first), (n, second)))
    expected = ((m - n) ** 2).sum() + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_covariances_that_do_not_commute_have_the_trace_of_a_general_root():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(25, 4)) @ rng.normal(size=(4, 4))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The eigenvalues of the product are those of the symmetric form, without its square roots.
    cross = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_a_sample_is_at_distance_0_of_itself_even_where_its_covariance_is_singular():
    a = np.random.default_rng(3).normal(size=(6, 20))
    assert abs(frechet_distance(a, a[::-1])) < 1e-6
    np.testing.assert_allclose(root(np.cov(a, rowvar=False)) @ root(np.cov(a, rowvar=False)), np.cov(a, rowvar=False))


@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (5,)])
def test_samples_that_cannot_be_compared_are_refused(shape):
    with pytest.raises(ValueError, match="a and b: got shapes"):
        frechet_distance(np.zeros((5, 4)), np.zeros(shape))
