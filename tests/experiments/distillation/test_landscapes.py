"""Convexity along lines, shares of a gradient, gaps over a descent, and guesses of a temperature."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.distillation import alpha_beta_plane, cached_temperature, pld_landscape
from experiments.distillation.alpha_beta_plane import heads, shares, softmax, tenth
from experiments.distillation.cached_temperature import BUCKET, EVEN, RENORM, STORED, errors, logits


def test_second_differences_see_a_dent():
    x = np.linspace(-1, 1, 21)
    assert pld_landscape.second_differences(np.stack([x**2, np.abs(x)])) >= -1e-12
    assert pld_landscape.second_differences((x**2 - 0.5 * np.exp(-100 * x**2))[None]) < -0.1


@pytest.mark.slow
def test_landscapes(tmp_path):
    config = replace(pld_landscape.PRESETS["smoke"], lines=8, points=21)
    result = pld_landscape.run(config, tmp_path)
    names = ("convex-landscape", "convex-kd-too", "dist-not-convex")
    pld, kd, dist = (result.measured[f"distillation/pld-{name}"][0] for name in names)
    assert min(pld, kd) > -1e-9 and dist < -1e-3
    assert result.series["plane"]["PLD"].shape == (21, 21)


@pytest.mark.slow
def test_shares_are_those_of_the_gradient():
    """alpha 1, beta 0 is forward KL, whose gradient is q - p."""
    s, t = alpha_beta_plane.pairs(alpha_beta_plane.PRESETS["smoke"], 3)
    p, q = softmax(t), softmax(s)
    mass = np.abs(q - p)
    share = (mass * tenth(mass)).sum(1) / mass.sum(1)
    assert shares(s, t, 1.0, 0.0)[0] == pytest.approx(share.mean(), rel=1e-4)
    assert (tenth(q).sum(1) == 2).all()
    head = heads(t)
    assert ((p * head).sum(1) <= 0.5 + (head.sum(1) == 1)).all() and (head.sum(1) >= 1).all()
    with pytest.raises(ValueError, match="exponents: got .*, expected .0.2. among them"):
        replace(alpha_beta_plane.PRESETS["smoke"], exponents=(0.5, 1.0))


def test_guesses_of_a_temperature():
    z = logits(cached_temperature.PRESETS["smoke"], 2)
    found = errors(z, 4, 2.0)
    p = np.exp(z[0]) / np.exp(z[0]).sum()
    truth = np.append(p[:4], 0) ** 0.5
    truth[4] = (p[4:] ** 0.5).sum()
    one = np.append(p[:4], p[4:].sum()) ** 0.5
    alone = np.abs(truth / truth.sum() - one / one.sum()).sum() / 2
    assert errors(z[:1], 4, 2.0)[BUCKET] == pytest.approx(alone)
    assert max(found[STORED], found[RENORM]) < 1e-12 < found[EVEN] < found[BUCKET]
    # a tail that is even needs no guess
    flat = np.concatenate([z[:, :4], np.repeat(z[:, 4:5], 26, axis=1)], axis=1)
    assert errors(flat, 4, 3.0)[EVEN] < 1e-12
