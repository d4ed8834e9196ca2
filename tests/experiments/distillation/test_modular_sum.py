"""KDRL on modular sums: accuracy by enumeration, samples that are what they say, and what claims compare."""

from dataclasses import replace
from itertools import product

import jax
import numpy as np
import pytest

from experiments.distillation import modular_sum
from experiments.distillation.modular_sum import METHODS, accuracy, sampled, teacher
from tests.experiments.result_run import check_run

SMOKE = modular_sum.PRESETS["smoke"]


def random_policy(config):
    z = np.random.default_rng(5).normal(size=(config.length, config.base, config.base))
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_accuracy_counts_all_responses():
    config = replace(SMOKE, length=3)
    log_pi, right = random_policy(config), 0.0
    for asked, digits in product(range(3), product(range(3), repeat=3)):
        missing, mass = asked, 1.0
        for position, digit in enumerate(digits):
            mass, missing = mass * np.exp(log_pi[position, missing, digit]), (missing - digit) % 3
        right += mass * (missing == 0) / 3
    assert float(accuracy(log_pi)) == pytest.approx(right, rel=1e-5)
    assert float(accuracy(teacher(config, 1))) == pytest.approx(config.right, rel=1e-5)


def test_samples_are_of_the_policy():
    config = replace(SMOKE, group=4000)
    log_pi = random_policy(config)
    states, digits, right = map(np.asarray, sampled(config, np.float32(log_pi), jax.random.key(0)))
    assert (right == (digits.sum(-1) % 3 == np.arange(3)[:, None])).all()
    assert (states[..., 0] == np.arange(3)[:, None]).all()
    assert (states[..., 1] == (states[..., 0] - digits[..., 0]) % 3).all()
    assert right.mean() == pytest.approx(float(accuracy(log_pi)), abs=0.03)
    share = np.bincount(digits[1, :, 0], minlength=3) / 4000
    np.testing.assert_allclose(share, np.exp(log_pi[0, 1]), atol=0.03)


def test_what_is_compared():
    found = {name: np.full((2, 3), 0.1 * place) for place, name in enumerate(METHODS)}
    found["GRPO"][:, -1] = 0.6
    got = {name: float(x[0]) for name, x in modular_sum.compared(found).items()}
    want = {"toy": 0.1, "toy-over-distillation": 0.2, "toy-end": -0.3, "toy-k1": 0.0, "anneal": 0.2, "masking": 0.3}
    assert got == pytest.approx(want)


def test_smoke_run(tmp_path):
    check_run(modular_sum, SMOKE, tmp_path)
