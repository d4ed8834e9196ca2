"""Students on a line: their densities, the transport against the exact one, and what the claims read off."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.distillation import mode_behaviour
from experiments.distillation.mode_behaviour import (
    FORWARD,
    MASSES,
    MODES,
    NARROW,
    RELEASED,
    SINKHORN,
    density,
    distances,
    followed,
    grid,
    left_mass,
    mixture,
    objective,
    one,
    teacher,
)

SMOKE = mode_behaviour.PRESETS["smoke"]


def test_density_and_logits_are_the_same_mixture():
    student = np.array([1.0, -2.0]), np.log([0.5, 2.0]), np.log([0.3, 0.7])
    x = grid()
    want = 0.3 * np.exp(-2 * (x - 1) ** 2) / 0.5 + 0.7 * np.exp(-((x + 2) ** 2) / 8) / 2
    np.testing.assert_allclose(density(student), want / want.sum(), rtol=1e-12)
    np.testing.assert_allclose(
        jax.jit(lambda s: jax.nn.softmax(mixture(x, *s)))(student), want / want.sum(), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(np.exp(teacher()) @ x, MASSES @ MODES, atol=1e-9)
    np.testing.assert_allclose(density(one(1.5)) @ x, 1.5, atol=1e-9)
    assert left_mass(student) == pytest.approx(0.7)


@pytest.mark.slow
def test_transport_is_that_of_the_line():
    """In one dimension its cost is the distance of the distribution functions; released, it is twice the variation."""
    config = replace(SMOKE, eps=0.25, n_iters=600)
    with jax.enable_x64(True):
        student = np.array([0.5]), np.zeros(1), np.zeros(1)
        have = float(jax.jit(objective(config, SINKHORN))(student))
        narrow = np.array([6.9]), np.log([NARROW]), np.zeros(1)
        released = float(jax.jit(objective(config, RELEASED))(narrow))
    p, q = np.exp(teacher()), density(student)
    exact = np.abs(np.cumsum(p - q)).sum() * (grid()[1] - grid()[0])
    assert exact < have < exact + 2 * config.eps
    assert released == pytest.approx(2, abs=1e-3)  # nothing overlaps


@pytest.mark.slow
def test_fits_and_slopes():
    """Forward KL matches the mean; a slope is the derivative of the loss."""
    config = replace(SMOKE, steps=300)
    with jax.enable_x64(True):
        (student,), slopes = followed(config, FORWARD, [one(0.0)], np.array([-1.0, 4.0]))
        loss = objective(config, FORWARD)
        up, down = (float(jax.jit(loss)((np.array([x]), np.log([NARROW]), np.zeros(1)))) for x in (4 + 1e-5, 4 - 1e-5))
    assert density(student) @ grid() == pytest.approx(MASSES @ MODES, abs=0.02)
    assert slopes[1] == pytest.approx((up - down) / 2e-5, rel=1e-6)
    assert distances([student])[0] > 1


def test_values_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="eps: got 0"):
        replace(SMOKE, eps=0.0)
