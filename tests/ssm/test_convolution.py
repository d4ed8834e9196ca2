"""S4 as a convolution: the kernel against powers of the transition, and what the recurrence gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.dispatch import lowered_for
from lightnet.scan.recurrence import Tokens
from ssm.convolution import causal_convolution, dplr_kernel
from ssm.dplr import bilinear_dplr, dense_bilinear, dense_matrices, recurrence
from tests.ssm.test_s4 import SLOW, STEPS, legs_model, powers, random_model


# One, odd, even (where the generating function is asked for at -1), and longer than the memory of some channels.
@pytest.mark.parametrize("length", [10, *map(SLOW, (1, 2, 9, 64))])
def test_the_kernel_from_the_generating_function_is_that_of_powers(length):
    with jax.enable_x64(True):
        for model, step in (legs_model(16), random_model()):
            expected = np.asarray(powers(model, step, length))
            for platform in ("cpu", "tpu"):
                with lowered_for(platform):
                    found = jax.jit(dplr_kernel, static_argnums=2)(model, step, length)
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("length", [1, 65, 256])
def test_the_kernel_in_float32(length, platform):
    with lowered_for(platform):
        found = jax.jit(dplr_kernel, static_argnums=2)(*legs_model(64, np.float32), length)
    with jax.enable_x64(True):
        expected = np.asarray(jax.jit(powers, static_argnums=2)(*legs_model(64), length))
    assert found.dtype == jnp.float32
    assert np.all(np.abs(found - expected).max(1) < 1e-4 * np.abs(expected).max(1))


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_gradients_of_the_kernel_are_those_of_powers_in_float32_too(platform):
    """Also at the root of unity -1, which even lengths have."""
    length = 4

    def gradient(kernel, model, step):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(kernel(*a, length))), argnums=(0, 1)))(model, step)

    with lowered_for(platform):
        rough = gradient(dplr_kernel, *legs_model(8, np.float32))
    with jax.enable_x64(True), lowered_for(platform):
        exact = gradient(powers, *legs_model(8))
        found = gradient(dplr_kernel, *legs_model(8))
    for leaf, narrow, expected in zip(*map(jax.tree.leaves, (found, rough, exact)), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
        np.testing.assert_allclose(narrow, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# A chunk of the recurrence, and some with a rest.
@pytest.mark.slow
@pytest.mark.parametrize("length", [32, 75])
def test_convolution_and_recurrence_agree(length):
    with jax.enable_x64(True):
        model, step = legs_model(8)
        u = np.random.default_rng(0).standard_normal((2, length, len(STEPS)))
        state = jnp.zeros((2, len(STEPS), 4), complex)
        y, last = jax.jit(recurrence)(bilinear_dplr(model, step), u, state, Tokens(None, None))
        convolved = jax.jit(causal_convolution)(u, powers(model, step, length))
        np.testing.assert_allclose(convolved, y, rtol=0, atol=1e-10)
        A, b = dense_bilinear(*dense_matrices(model)[:2], step)
        h = np.zeros((2, *b.shape), complex)
        for t in range(length):
            h = np.einsum("dmn,bdn->bdm", A, h) + np.asarray(b) * u[:, t, :, None]
        np.testing.assert_allclose(last, h[..., :4], rtol=0, atol=1e-10)
