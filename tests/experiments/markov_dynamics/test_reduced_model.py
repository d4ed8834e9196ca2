"""The two-parameter model: closed forms against optimisation and finite differences, energy, basins."""

import numpy as np
import pytest

from experiments.markov_dynamics.reduced_model import (
    SADDLE,
    SADDLE_ENERGY,
    descend,
    energy,
    gradient,
    logits,
    loss,
    slope,
    trapped,
)
from experiments.sources import SwitchingSource

CHAINS = [(0.2, 0.3), (0.1, 0.1), (0.5, 0.8), (0.9, 0.4)]


def given_bias(b: np.ndarray, a: float, p: float, q: float) -> np.ndarray:
    """The expected loss for any logit after 0, written out."""
    one, zero = p / (p + q), q / (p + q)
    after_one, after_zero = 1 / (1 + np.exp(-(b + a))), 1 / (1 + np.exp(-b))
    return -one * (q * np.log(1 - after_one) + (1 - q) * np.log(after_one)) - zero * (
        p * np.log(after_zero) + (1 - p) * np.log(1 - after_zero)
    )


@pytest.mark.parametrize(("p", "q"), CHAINS)
def test_the_bias_is_the_best_one(p, q):
    for e, w in [(0.3, 0.5), (1.7, -0.4), (0.9, -1.3), (0.0, 1.0)]:
        a = float(slope(e, w))
        f0, f1 = logits(a, p, q)
        assert f1 == f0 + a
        around = f0 + np.linspace(-0.5, 0.5, 101)
        values = given_bias(around, a, p, q)
        assert values.argmin() == 50
        assert loss(e, w, p, q) == pytest.approx(values[50], abs=1e-12)
        # dL/db = 0: the mean prediction is the stationary law.
        predicted = (p / (1 + np.exp(-f1)) + q / (1 + np.exp(-f0))) / (p + q)
        assert predicted == pytest.approx(p / (p + q), abs=1e-9)


def test_large_and_small_slopes_do_not_lose_digits():
    for p, q in CHAINS:
        f0, _ = logits(np.array([-60.0, 60.0]), p, q)
        assert np.isfinite(f0).all()
        # The mean prediction is the stationary law, also where e^A is tiny beside (p - q)^2.
        predicted = (p / (1 + np.exp(-(f0 - 60.0))) + q / (1 + np.exp(-f0)))[0] / (p + q)
        assert predicted == pytest.approx(p / (p + q), rel=1e-6)


@pytest.mark.parametrize(("p", "q"), CHAINS)
def test_the_gradient_is_that_of_the_loss(p, q):
    random, h = np.random.default_rng(0), 1e-5
    e, w = random.uniform(-1.5, 1.5, (2, 20))
    by_e, by_w = gradient(e, w, p, q)
    np.testing.assert_allclose(by_e, (loss(e + h, w, p, q) - loss(e - h, w, p, q)) / (2 * h), atol=1e-8)
    np.testing.assert_allclose(by_w, (loss(e, w + h, p, q) - loss(e, w - h, p, q)) / (2 * h), atol=1e-8)
    assert all(not np.any(part) for part in gradient(0.0, w, p, q))


@pytest.mark.parametrize(("p", "q"), CHAINS)
def test_a_slow_descent_conserves_the_energy_better_the_slower_it_is(p, q):
    start = (np.array([0.8, 0.5, -0.6]), np.array([0.4, -0.3, -1.2]))
    drifts = []
    for rate in (0.02, 0.002):
        end = descend(*start, p, q, rate=rate, steps=round(20 / rate))
        drifts.append(np.abs(energy(*end) - energy(*start)).max())
    assert drifts[1] < 0.2 * drifts[0] < 0.1


def test_the_prediction_of_the_trap_is_where_the_flow_ends():
    random = np.random.default_rng(1)
    e, w = random.uniform(-1.2, 1.2, (2, 12))
    for p, q in [(0.1, 0.1), (0.8, 0.9)]:
        last_e, _ = descend(e, w, p, q, rate=0.1, steps=3000)
        np.testing.assert_array_equal(np.abs(last_e) < 0.05, trapped(e, w, p, q))
    assert energy(0.0, SADDLE) == pytest.approx(SADDLE_ENERGY)


def test_both_levels_are_the_entropies_of_random_chains():
    """A = log((1-p)(1-q)/(pq)) predicts the chain, e = 0 its stationary law: H_inf and H(pi), without a gradient."""
    random = np.random.default_rng(2)
    for p, q in random.uniform(0.02, 0.98, (200, 2)):
        rate, single = SwitchingSource(1, p, q).entropy_rate(), SwitchingSource(1, p, q).unigram_entropy()
        w = random.uniform(-1.5, 1.5)
        assert loss(0.0, w, p, q) == pytest.approx(single, abs=1e-12)
        best, factor = np.log((1 - p) * (1 - q) / (p * q)), 1 + 2 * w * abs(w)
        if best / factor > 0:
            e = np.sqrt(best / factor)
            assert loss(e, w, p, q) == pytest.approx(rate, abs=1e-9)
            assert np.abs(gradient(e, w, p, q)).max() < 1e-8
