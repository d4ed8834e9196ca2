"""The exact expectation of LightNet's decay against closed forms, samples and its limits."""

import numpy as np
import pytest

from experiments.lightnet.decay_law import expected_log_decay, median_step


def test_equal_logits_give_the_decay_of_a_running_average():
    t = np.array([2, 3, 17, 4000])
    np.testing.assert_allclose(expected_log_decay(t, 0.0), np.log(t / (t - 1)), rtol=1e-9)


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_samples_agree(spread):
    draws = spread * np.random.default_rng(0).standard_normal((40_000, 12))
    z = np.logaddexp.accumulate(draws, axis=1)
    steps = z[:, 1:] - z[:, :-1]
    found, error = steps.mean(axis=0), steps.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(found - expected_log_decay(np.arange(2, 13), spread)) < 4.5 * error).all()


def test_expectations_add_up_to_the_expected_normaliser():
    # E log(e^a + e^b) = E a + E log(1 + e^x) with x ~ N(0, 2 s^2), and z_1 = a has the expectation 0.
    x = np.linspace(-12, 12, 40_001)
    density = np.exp(-(x**2) / 2)
    density /= density.sum()
    expected = np.sum(density * np.logaddexp(0, np.sqrt(2) * 1.3 * x))
    assert expected_log_decay([2], 1.3)[0] == pytest.approx(expected, rel=1e-9)


def test_the_limit_is_one_over_t_and_is_reached_later_by_wider_logits():
    scaled = {s: 100_000 * expected_log_decay([100_000], s)[0] - 1 for s in (0.5, 1.0, 2.0)}
    # The first correction is exp(s^2) / (2 t): the variance of e^a over its squared mean, and 1 of the logarithm.
    for s, found in scaled.items():
        assert found == pytest.approx(np.exp(s**2) / 2e5, rel=0.05)


def test_the_median_is_that_of_a_normal_draw():
    draws = np.random.default_rng(1).standard_normal(200_001)
    assert np.median(np.exp(draws) / np.exp(0.5)) == pytest.approx(median_step(1.0), abs=0.01)


@pytest.mark.parametrize(("steps", "spread", "message"), [([1, 2], 1.0, "steps: got"), ([2], -1.0, "spread: got -1.0")])
def test_what_has_no_decay_is_refused(steps, spread, message):
    with pytest.raises(ValueError, match=message):
        expected_log_decay(steps, spread)
