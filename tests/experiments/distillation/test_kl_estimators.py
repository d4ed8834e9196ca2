"""Expectations over ten actions: against samples, and against what each estimator is."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.distillation import kl_estimators
from experiments.distillation.kl_estimators import WIDE, cosine, enumerated, policies, sampled

SMOKE = kl_estimators.PRESETS["smoke"]


def test_enumeration_against_the_formulas(tmp_path):
    z, log_target = policies(SMOKE, 3, SMOKE.far)
    exact = enumerated(z, log_target)
    log_pi = z - np.log(np.exp(z).sum())
    pi, d = np.exp(log_pi), log_pi - log_target
    assert exact.reverse[0] == pytest.approx(pi @ d, rel=1e-12)
    assert exact.values["k2"][0] == pytest.approx(pi @ d**2 / 2, rel=1e-12)
    mean = pi @ (np.exp(-d) - 1 + d)
    assert exact.values["k3"] == pytest.approx((mean, pi @ (np.exp(-d) - 1 + d - mean) ** 2), rel=1e-12)
    np.testing.assert_allclose(exact.reverse[1], pi * (d - pi @ d), atol=1e-14)
    np.testing.assert_allclose(exact.forward[1], pi - np.exp(log_target), atol=1e-14)
    # the gradient of one sample: the action's logit against all
    np.testing.assert_allclose(exact.at_actions[2], d[2] * (np.eye(10)[2] - pi), atol=1e-14)


def test_a_wrong_gradient_is_seen_by_samples():
    config = replace(SMOKE, samples=20_000)
    z, log_target = policies(config, 1, config.far)
    exact = enumerated(z, log_target)
    assert sampled(config, 1, z, exact) < 4
    value, gradient = exact.reverse
    wrong = replace(exact, reverse=(value, 0.5 * gradient))
    assert sampled(config, 1, z, wrong) > 10
    assert cosine(np.array([3.0, 4.0]), np.array([6.0, 8.0])) == pytest.approx(1)


def test_every_claim_is_measured_for_every_seed(tmp_path):
    result = kl_estimators.run(replace(SMOKE, seeds=(0, 5)), tmp_path)
    assert {claim.id for claim in kl_estimators.CLAIMS} == set(result.measured)
    assert {len(values) for values in result.measured.values()} == {2}
    assert result.tables["estimators"]["policies"].count(WIDE) == 8
