"""Fourier transforms as products of matrices: against NumPy's, there and back, and where S4 takes them."""

import math

import jax
import numpy as np
import pytest

from lightnet.scan.dispatch import lowered_for
from ssm.convolution import causal_convolution
from ssm.fourier import Grid, grid, inverse_transform, transform


@pytest.mark.parametrize("length", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 64, 211))])
def test_convolutions_for_tpus_are_by_products_and_equal_to_the_definition(length):
    random = np.random.default_rng(0)
    u, kernel = random.standard_normal((2, length, 3)), random.standard_normal((3, length))
    expected = np.zeros(u.shape)
    for t in range(length):
        expected[:, t] = np.einsum("bsd,ds->bd", u[:, : t + 1], kernel[:, t::-1])
    for platform, transforms in (("tpu", False), ("cpu", True)):
        with jax.enable_x64(True), lowered_for(platform):
            convolved = jax.jit(causal_convolution)
            np.testing.assert_allclose(convolved(u, kernel), expected, rtol=0, atol=1e-12)
            assert ("fft" in str(jax.make_jaxpr(convolved)(u, kernel))) == transforms


def test_grids_are_long_enough_and_nearly_square():
    for length in (*range(1, 300), 4000, 2**20 - 1):
        over = grid(length)
        assert over.rows % 2 == 0 and over.length >= length and 0 <= over.rows - over.columns <= 2
        # Then the readout is truncated without steps that are left over.
        assert over.length % math.isqrt(over.length) == 0
        assert over.rows <= math.sqrt(length) + 2


# Nothing filled up; a part of a row and rows; one column, one number.
@pytest.mark.parametrize(("length", "over"), [(24, Grid(6, 4)), (7, Grid(6, 5)), (3, Grid(4, 1)), (1, Grid(2, 1))])
def test_the_spectrum_is_that_of_numpy_and_comes_back(length, over):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((2, length, 3))
        found = jax.jit(transform, static_argnums=1)(x, over)
        expected = np.fft.fft(x, over.length, axis=1)[:, over.frequencies]
        np.testing.assert_allclose(found[:, 0] + 1j * found[:, 1], expected, rtol=0, atol=1e-12)
        back = jax.jit(inverse_transform, static_argnums=(1, 2))(found, over, length)
        np.testing.assert_allclose(back, x, rtol=0, atol=1e-13)


def test_in_float32_the_error_is_that_of_rounding():
    """Of twiddles, too, whose angles are large: 2,000 tokens have the error of a few products."""
    x = np.random.default_rng(0).standard_normal((1, 2000, 2)).astype(np.float32)
    over = grid(4000)
    expected = np.fft.fft(np.float64(x), over.length, axis=1)[:, over.frequencies]
    found = jax.jit(transform, static_argnums=1)(x, over)
    assert found.dtype == np.float32
    error = np.abs(found[:, 0] + 1j * found[:, 1] - expected).max()
    assert error < 4 * np.finfo(np.float32).eps * np.linalg.norm(x[0], axis=0).max() * math.sqrt(math.log2(4000))
