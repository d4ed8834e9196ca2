"""The Sinkhorn loss against its entropy, the ends of the JSD family, and gradients of skew KL."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.distillation import jensen_shannon_family, sinkhorn_entropy, skew_gradient


@pytest.mark.slow
def test_sinkhorn_measures(tmp_path):
    config = replace(sinkhorn_entropy.PRESETS["smoke"], seeds=(0, 3), batch=5, entropies=(0.003, 1e4), converged=5000)
    result = sinkhorn_entropy.run(config, tmp_path)
    assert {claim.id for claim in sinkhorn_entropy.CLAIMS} == set(result.measured)
    measured = {id.removeprefix("distillation/sinkd-"): values for id, values in result.measured.items()}
    assert max(measured["epsilon-limits"]) < 0.01 and max(measured["debiased"]) < 1e-4
    assert min(measured["entropic-bias-gradient"]) > max(measured["debiased"])
    s, t = sinkhorn_entropy.batch(config, 0)
    best, mean = sinkhorn_entropy.limits(s, t)
    assert best < mean and sinkhorn_entropy.limits(s, s)[0] == 0


def test_ends_of_the_family():
    config = jensen_shannon_family.PRESETS["smoke"]
    s, t = jensen_shannon_family.pair(config, 0)
    value, gradient = jensen_shannon_family.family(config, s, t)
    p, q = (np.exp(x) / np.exp(x).sum() for x in (t, s))
    assert value[0] == pytest.approx((p * np.log(p / q)).sum())
    assert value[-1] == pytest.approx((q * np.log(q / p)).sum())
    m = (p + q) / 2
    assert value[2] == pytest.approx((p * np.log(p / m)).sum() / 2 + (q * np.log(q / m)).sum() / 2)
    np.testing.assert_allclose(gradient[0], q - p, atol=1e-12)
    swapped = value[[-1, *range(1, len(value) - 1), 0]]  # the special cases at the wrong ends
    assert jensen_shannon_family.ends(np.array(config.betas), swapped, gradient)[0] > 0.005


def test_skew_gradients_by_differences():
    config = skew_gradient.PRESETS["smoke"]
    s, t = skew_gradient.pairs(config, 1)
    _, by_probability = skew_gradient.gradients(s[:1], t[:1], 0.1)
    p, q = (np.exp(x[0]) / np.exp(x[0]).sum() for x in (t, s))
    step = 1e-7 * np.eye(5)

    def skewed(q):
        return (p * np.log(p / (0.1 * p + 0.9 * q))).sum()

    differences = [(skewed(q + h) - skewed(q - h)) / 2e-7 for h in step]
    assert by_probability[0] == pytest.approx(np.abs(differences).max(), rel=1e-4)
    with jax.enable_x64(True):
        assert skew_gradient.at_disjoint_supports(config, 0, 0.3) == pytest.approx(-np.log(0.3))
    with pytest.raises(ValueError, match="expected rising numbers"):
        replace(config, alphas=(0.0, 0.5, 0.1))
