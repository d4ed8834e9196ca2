"""Random chains, one per sequence: the laws of their kernels, their stationary starts and their transitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sources import InContextChains, MarkovSource
from experiments.sources.in_context import sample_each, stationary_contexts

KEY = jax.random.key(11)


@pytest.mark.parametrize(("alphabet", "order"), [(2, 3)])
def test_stationary_contexts_equal_those_of_a_source(alphabet: int, order: int) -> None:
    kernels = InContextChains(alphabet, order).kernels(KEY, 5)
    laws = np.asarray(stationary_contexts(kernels))
    for kernel, law in zip(np.asarray(kernels, dtype=np.float64), laws, strict=True):
        source = MarkovSource(kernel.reshape((alphabet,) * (order + 1)))
        np.testing.assert_allclose(law, source.stationary.ravel(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("alphabet", "order", "length"), [(2, 1, 7), (3, 2, 6)])
def test_paths_follow_the_chain_from_its_stationary_law(alphabet: int, order: int, length: int) -> None:
    """Frequencies of the first and of the last k + 1 symbols over many paths of one chain, within 4 standard errors."""
    kernel = InContextChains(alphabet, order).kernels(KEY, 1)
    paths, count = np.asarray(sample_each(KEY, jnp.repeat(kernel, 20_000, axis=0), length)), 20_000
    law = np.asarray(stationary_contexts(kernel))[0]
    expected = (law[:, None] * np.asarray(kernel)[0]).ravel()
    digits = alphabet ** np.arange(order, -1, -1)
    for window in (paths[:, : order + 1], paths[:, length - order - 1 :]):
        frequency = np.bincount(window @ digits, minlength=len(expected)) / count
        assert np.all(np.abs(frequency - expected) < 4 * np.sqrt(expected / count) + 1e-6)


@pytest.mark.parametrize("length", [0, 2, 5])
def test_short_sequences(length: int) -> None:
    """Also shorter than a context."""
    chains = InContextChains(2, 3).sample(KEY, (4, length))
    assert chains.symbols.shape == (4, length)
    assert chains.symbols.dtype == jnp.int32


@pytest.mark.slow
@pytest.mark.parametrize("alphabet", [2, 4])
def test_rows_are_flat(alphabet: int) -> None:
    """E H(row) = 1/2 + ... + 1/K under Dir(1, ..., 1), which doubly stochastic rows do not follow for K > 2."""
    rows = np.asarray(InContextChains(alphabet).kernels(KEY, 4000))[:, 0]
    entropies = -(rows * np.log(rows)).sum(axis=1)
    expected = sum(1 / i for i in range(2, alphabet + 1))
    assert abs(entropies.mean() - expected) < 4 * entropies.std() / math.sqrt(len(rows))


@pytest.mark.slow
def test_equal_rows_and_mixtures() -> None:
    equal = np.asarray(InContextChains(3, 2, rows="equal").kernels(KEY, 50))
    assert np.all(equal == equal[:, :1])
    mixed = np.asarray(InContextChains(3, rows="doubly_stochastic", equal_share=0.25).kernels(KEY, 4000))
    share = np.mean(np.all(mixed == mixed[:, :1], axis=(1, 2)))
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.slow
def test_doubly_stochastic_matrices_are_uniform() -> None:
    """Columns sum to 1; every entry has the law that follows from symmetry and from the polytope of 3 x 3 matrices."""
    matrices = np.asarray(InContextChains(3, rows="doubly_stochastic").kernels(KEY, 4000), dtype=np.float64)
    np.testing.assert_allclose(matrices.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrices.sum(axis=2), 1, atol=1e-6)
    assert matrices.min() >= -1e-7
    # Uniform on the 2 x 2 corners (a, b, c, d) of the cube with a+b, c+d, a+c, b+d <= 1 <= a+b+c+d, by rejection.
    corners = np.random.default_rng(0).random((200_000, 4))
    a, b, c, d = corners.T
    inside = corners[(a + b <= 1) & (c + d <= 1) & (a + c <= 1) & (b + d <= 1) & (corners.sum(axis=1) >= 1)]
    expected = np.array([np.mean(inside[:, 0] ** 2), np.mean(inside[:, 0] * inside[:, 3])])
    for i, j in ((0, 0), (2, 2), (1, 2)):
        square = matrices[:, i, j] ** 2
        assert abs(square.mean() - expected[0]) < 4 * square.std() * math.sqrt(1 / 4000 + 1 / len(inside))
    product = matrices[:, 2, 0] * matrices[:, 1, 1]
    assert abs(product.mean() - expected[1]) < 4 * product.std() * math.sqrt(1 / 4000 + 1 / len(inside))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphabet": 1}, "alphabet: got 1"),
        ({"order": 0}, "order: got 0"),
        ({"order": 1.5}, "order: got 1.5"),
        ({"rows": "odd"}, "rows: got 'odd'"),
        ({"rows": "doubly_stochastic", "order": 2}, "rows: got 'doubly_stochastic' with order 2"),
        ({"rows": "doubly_stochastic", "alphabet": 9}, "9 symbols"),
        ({"equal_share": 1.1}, "equal_share: got 1.1"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InContextChains(**arguments)


def test_shape_is_checked() -> None:
    with pytest.raises(ValueError, match="shape: got"):
        InContextChains().sample(KEY, (3,))
