"""The 4-bit model: what rounding and its transforms do, its text, and what the claims compare."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import kl_top_calibration
from experiments.distillation.kl_top_calibration import (
    CROSS_ENTROPY,
    FULL,
    ROUNDED,
    TOP,
    compared,
    logits,
    model,
    rotation,
    rounded,
    text,
)

SMOKE = kl_top_calibration.PRESETS["smoke"]


def test_rounding_is_symmetric_with_a_gradient_of_one():
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    y, pull = jax.vjp(lambda x: rounded(x, 4, 1), x)
    steps = np.asarray(y) / np.abs(x).max(1, keepdims=True) * 7
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert np.abs(y - x).max() <= (np.abs(x).max(1) / 14).max() * 1.0001
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], 1)


@pytest.mark.slow
def test_transforms_change_nothing_but_the_rounding():
    """With many bits a scaled and rotated network is the network."""
    config = replace(SMOKE, bits=8, width=6, hidden=10)
    net, random = jax.tree.map(jnp.asarray, model(config, 0)), np.random.default_rng(1)
    contexts = random.integers(0, 20, (30, 2))
    transforms = tuple((0.3 * random.normal(size=n), 0.3 * random.normal(size=(n, n))) for n in (12, 10))

    def both(transforms):
        R = rotation(transforms[0][1])
        return logits(config, net, contexts), logits(config, net, contexts, transforms), R @ R.T

    exact, close, eye = jax.jit(both)(jax.tree.map(jnp.float32, transforms))
    np.testing.assert_allclose(eye, np.eye(12), atol=1e-5)
    error = np.abs(close - exact).max() / np.abs(exact - net.bias[None]).max()
    assert 1e-6 < error < 0.05


@pytest.mark.slow
def test_text_follows_the_network():
    config = replace(SMOKE, vocabulary=5, length=200)
    net = jax.tree.map(jnp.asarray, model(config, 2))
    contexts, tokens = (np.asarray(x) for x in jax.jit(lambda key: text(config, net, key, 60))(jax.random.key(0)))
    assert contexts.shape == (12_000, 2)
    # within a sequence a token is the next context's first
    np.testing.assert_array_equal(contexts.reshape(200, 60, 2)[1:, :, 0], tokens.reshape(200, 60)[:-1])
    p = np.asarray(jax.nn.softmax(logits(config, net, contexts)))
    np.testing.assert_allclose(np.bincount(tokens, minlength=5) / 12_000, p.mean(0), atol=0.02)


def test_differences_of_the_claims():
    small, large = SMOKE.sequences
    values = {(ROUNDED, 0): 5.0, (CROSS_ENTROPY, small): 4.0, (FULL, small): 2.5, (TOP, small): 3.0}
    values |= {(CROSS_ENTROPY, large): 2.25, (FULL, large): 1.0, (TOP, large): 2.0}
    assert compared(SMOKE, values) == (-1.0, 0.5, 0.75, -2.0)
