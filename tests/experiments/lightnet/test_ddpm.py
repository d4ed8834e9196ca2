"""Diffusion: the formulas against each other, and a sampler that finds what an exact predictor knows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lightnet.ddpm import (
    clean_estimate,
    denoising_loss,
    fresh_noise,
    noise_levels,
    noised,
    reverse_step,
    sample,
)


def test_a_full_step_with_fresh_noise_is_the_posterior_of_ddpm():
    """Mean and variance of q(x_{t-1} | x_t, x_0), eqs. 6 and 7."""
    levels = noise_levels(100)
    rng = np.random.default_rng(0)
    for t in (1, 2, 57, 100):
        level, before = levels[t], levels[t - 1]
        alpha, x, clean, noise = level / before, *rng.normal(size=(3, 5))
        mean = np.sqrt(before) * (1 - alpha) / (1 - level) * clean + np.sqrt(alpha) * (1 - before) / (1 - level) * x
        deviation = np.sqrt((1 - before) / (1 - level) * (1 - alpha))
        with jax.enable_x64(True):
            got = reverse_step(x, clean, level, before, noise, 1.0)
            assert float(fresh_noise(level, before, 1.0)) == pytest.approx(deviation, abs=1e-12)
        np.testing.assert_allclose(got, mean + deviation * noise, atol=1e-12)


def test_without_fresh_noise_a_step_keeps_the_noise_that_was_there():
    x, noise = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    late, early = (noised(x, noise, jnp.full(3, level)) for level in (0.2, 0.7))
    np.testing.assert_allclose(reverse_step(late, x, 0.2, 0.7, 99.0, 0.0), early, atol=1e-5)
    np.testing.assert_allclose(clean_estimate(late, noise, 0.2), x, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_exact_predictor_of_one_picture_samples_it(eta):
    levels, picture = noise_levels(200), jnp.array([[0.9, -0.5, 0.1]])
    of_time = jnp.asarray(levels, jnp.float32)

    def predict(x, time):
        level = of_time[time][:, None]
        return (x - jnp.sqrt(level) * picture) / jnp.sqrt(1 - level)

    drawn = sample(predict, (7, 3), jax.random.key(0), levels, steps=20, eta=eta)
    np.testing.assert_allclose(drawn, jnp.broadcast_to(picture, drawn.shape), atol=1e-4)


def test_the_loss_of_the_true_noise_is_0_and_of_none_is_1():
    levels, x = jnp.asarray(noise_levels(100), jnp.float32), jnp.ones((400, 5))

    def exact(noisy, time):
        level = levels[time][:, None]
        return (noisy - jnp.sqrt(level)) / jnp.sqrt(1 - level)

    assert float(denoising_loss(exact, x, jax.random.key(1), levels)) < 1e-6
    nothing = denoising_loss(lambda noisy, _: jnp.zeros_like(noisy), x, jax.random.key(1), levels)
    assert float(nothing) == pytest.approx(1.0, abs=5 * np.sqrt(2 / 2000))


def test_the_published_levels_end_in_noise_whatever_the_number_of_steps():
    for steps in (50, 1000):
        levels = noise_levels(steps)
        assert len(levels) == steps + 1 and (np.diff(levels) < 0).all() and levels[-1] < 1e-4
    with pytest.raises(ValueError, match="steps: got 20, expected more than 20"):
        noise_levels(20)
    with pytest.raises(ValueError, match="steps: got 51, expected from 1 to 50"):
        sample(lambda x, t: x, (1, 1), jax.random.key(0), noise_levels(50), steps=51)
