"""What does not count reaches neither value nor gradient, and where nothing counts both are 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd

RANDOM = np.random.default_rng(24)
A, B_, C, D = RANDOM.normal(size=(4, 3, 4)).astype(np.float32)
MASK = np.array([[True, False, True, True], [False, True, True, False], [True] * 4])

# arrays (3, 4) and a mask -> anything whose sum has a gradient by the first
LOSSES = {
    "clipped_policy_loss": lambda a, b, c, d, m: kd.clipped_policy_loss(a, b, c, mask=m),
    "didi_loss": lambda a, b, c, d, m: kd.didi_loss(a, b, weight=jnp.abs(c), density=jnp.abs(d), mask=m),
    "didi_discriminator_loss": lambda a, b, c, d, m: kd.didi_discriminator_loss(a, b, student_mask=m, teacher_mask=m),
    "didi_reward": lambda a, b, c, d, m: kd.didi_reward(a, m),
    "f_distill_loss": lambda a, b, c, d, m: kd.f_distill_loss(a, b, c[:, 0], mask=m[:, 0]),
    "f_distill_weights": lambda a, b, c, d, m: kd.f_distill_weights(a.ravel(), mask=m.ravel()),
    "balance_over_time": lambda a, b, c, d, m: kd.balance_over_time(a[0], 0.1 * jax.nn.sigmoid(b[0]), mask=m[0]),
    "grpo_advantage": lambda a, b, c, d, m: kd.grpo_advantage(a, mask=m),
    "whiten": lambda a, b, c, d, m: kd.whiten(a, m),
    "kl_value": lambda a, b, c, d, m: kd.kl_value(a, b, mask=m),
    "kl_surrogate": lambda a, b, c, d, m: kd.kl_surrogate(a, b, kind="reward", importance=c, mask=m),
    "returns_after": lambda a, b, c, d, m: kd.returns_after(a, normalize=True, mask=m),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_masks(name):
    loss = LOSSES[name]
    mask = np.broadcast_to(MASK[:, :1], MASK.shape) if name == "f_distill_loss" else MASK
    both = jax.jit(lambda *x: (loss(*x), jax.grad(lambda *x: jnp.sum(loss(*x)))(*x)))
    value, gradient = both(A, B_, C, D, mask)
    assert np.abs(value).max() > 0
    for poison in (np.nan, np.inf, -np.inf):
        again, dirty = both(*(np.where(mask, x, np.float32(poison)) for x in (A, B_, C, D)), mask)
        np.testing.assert_array_equal(again, value)
        np.testing.assert_array_equal(dirty, gradient)
    assert (np.asarray(gradient)[~mask] == 0).all() and np.isfinite(gradient).all()
    for x in both(*(np.full_like(x, np.nan) for x in (A, B_, C, D)), np.zeros_like(mask)):
        assert (np.asarray(x) == 0).all()
