"""What decides in more dimensions: the symmetric part, without ever making the large matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssm.dynamics import (
    eigenvalue_label,
    inertia,
    projection_scenario,
    scenario,
    spectrum,
    symmetric_spectrum,
)

TURN = np.array([[0.0, 1.0], [-1.0, 0.0]])


@pytest.mark.parametrize(
    ("matrix", "by_symmetric_part", "by_eigenvalues"),
    [
        (np.diag([1.0, 0.5]), "divergent", "divergent"),
        (np.diag([-1.0, -0.5]), "convergent", "convergent"),
        (np.diag([1.0, -0.5]), "mixed", "mixed"),
        ([[-1, 9], [0, -2]], "mixed", "convergent"),  # the counter-example to the eigenvalues
        ([[1, 9], [0, 2]], "mixed", "divergent"),
        ([[-1.0, 0.3], [0.0, -0.5]], "convergent", "convergent"),
        ([[2.0]], "divergent", "divergent"),
        ([[-1e-120]], "convergent", "convergent"),
        (np.eye(3) + 50 * np.cross(np.eye(3), [1.0, 2.0, 2.0]), "divergent", "divergent"),  # complex eigenvalues
        (TURN, "mixed", "mixed"),
        (np.zeros((2, 2)), "mixed", "mixed"),
        (np.diag([1.0, 0.0, 2.0]), "divergent", "divergent"),  # semi-definite: definite on its row space
        (np.diag([-1.0, 0.0, -2.0]), "convergent", "convergent"),
        ([[0.0, 1.0], [0.0, 0.0]], "mixed", "mixed"),  # nilpotent
        (np.block([[np.eye(1), np.zeros((1, 2))], [np.zeros((2, 1)), TURN]]), "mixed", "mixed"),
    ],
)
def test_labels(matrix, by_symmetric_part, by_eigenvalues):
    assert scenario(matrix) == by_symmetric_part
    assert eigenvalue_label(matrix) == by_eigenvalues
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((len(matrix), len(matrix))))[0]
    for scale in (1e-150, 1.0, 1e150):
        assert scenario(scale * turned @ np.asarray(matrix) @ turned.T) == by_symmetric_part
        assert eigenvalue_label(scale * turned @ np.asarray(matrix) @ turned.T) == by_eigenvalues


def test_a_matrix_of_rank_one_that_is_not_symmetric_is_mixed():
    """x^T (u v^T) x = (u x)(v x) has both signs, though it has one on the row space itself."""
    u, v = np.array([1.0, 2.0, 0.5]), np.array([1.0, 1.0, -0.3])
    assert scenario(np.outer(u, v)) == "mixed" and scenario(np.outer(u, u)) == "divergent"
    assert eigenvalue_label(np.outer(u, v)) == "divergent" == eigenvalue_label(np.outer(v, u))


def test_zero_eigenvalues_that_rounding_scatters_do_not_count():
    """Rank one, 30 channels, and an eigenvalue a million times smaller than the matrix."""
    turned = np.linalg.qr(np.random.default_rng(2).standard_normal((30, 30)))[0]
    u, v = turned[0], 1e-6 * turned[0] + turned[1]
    assert eigenvalue_label(np.outer(u, v)) == "divergent" and eigenvalue_label(-np.outer(u, v)) == "convergent"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("sign", "label"), [(1, "divergent"), (-1, "convergent"), (0, "mixed")])
def test_tied_projections_are_of_one_sign_in_the_precision_they_have(dtype, sign, label):
    random = np.random.default_rng(0)
    c = random.standard_normal((6, 40)).astype(dtype)
    weights = np.where(np.arange(6) < 3, 1, -1) if sign == 0 else sign * np.linspace(0.7, 2.0, 6)
    b = (weights[:, None] * c).astype(dtype)
    assert scenario(jnp.asarray(c.T @ b)) == scenario(c.T @ b) == label
    assert projection_scenario(b, c) == projection_scenario(jnp.asarray(b), c) == label
    expected = {1: (6, 0), -1: (0, 6), 0: (3, 3)}[sign]
    assert inertia(b, c) == expected


@pytest.mark.parametrize("shape", [(3, 8), (4, 8), (5, 7), (1, 2), (2, 1), (4, 3)])
def test_small_problems_have_the_eigenvalues_of_the_large_ones(shape):
    random = np.random.default_rng(1)
    b, c = random.standard_normal((2, *shape))
    matrix = c.T @ b
    rank = min(shape)

    def largest(values, count):
        return np.sort_complex(np.round(values[np.argsort(-np.abs(values))[:count]], 10))

    np.testing.assert_allclose(largest(spectrum(b, c), rank), largest(np.linalg.eigvals(matrix), rank), atol=1e-9)
    whole = np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]
    found = symmetric_spectrum(b, c)
    assert found.size == min(2 * shape[0], shape[1]) and (np.diff(found) <= 0).all()
    kept = np.sort(whole[np.argsort(-np.abs(whole))[: found.size]])[::-1]
    np.testing.assert_allclose(found, kept, atol=1e-12)
    assert scenario(matrix) == projection_scenario(b, c)
    assert inertia(b, c) == ((found > 1e-10).sum(), (found < -1e-10).sum())


@pytest.mark.parametrize(("states", "channels"), [(1, 2), (16, 32), (16, 128), (7, 33)])
def test_untied_projections_have_n_eigenvalues_of_each_sign(states, channels):
    for seed in range(3):
        b, c = np.random.default_rng(seed).uniform(-1, 1, (2, states, channels)).astype(np.float32) / channels**0.5
        assert inertia(b, c) == (states, states)
        assert projection_scenario(b, c) == "mixed"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1e200, 1e308, 1.7e308])
def test_no_scale_is_too_large_or_too_small(scale):
    assert scenario(scale * np.eye(3)) == eigenvalue_label(scale * np.eye(3)) == "divergent"
    assert scenario(-scale * np.ones((3, 3))) == eigenvalue_label(-scale * np.ones((3, 3))) == "convergent"
    assert projection_scenario(scale * np.eye(2, 5), -scale * np.eye(2, 5)) == "convergent"
    assert inertia(scale * np.eye(2), scale * np.eye(2)) == (2, 0)
    assert inertia(scale * np.eye(2, 4), -np.diag([1.0, -1.0]) @ np.eye(2, 4)) == (1, 1)
    other = 1 / scale if 1e-300 < scale < 1e300 else 1.0
    expected = other * scale * np.ones(2)
    np.testing.assert_allclose(spectrum(scale * np.eye(2), other * np.eye(2)), expected, rtol=1e-14)
    np.testing.assert_allclose(symmetric_spectrum(scale * np.eye(2), other * np.eye(2)), expected, rtol=1e-14)


@pytest.mark.filterwarnings("error")
def test_eigenvalues_that_no_float_holds_are_infinite():
    large = 1e200 * np.eye(1)
    assert spectrum(large, -large).real.tolist() == [-np.inf]
    assert symmetric_spectrum(large, large).tolist() == [np.inf] and symmetric_spectrum(0 * large, large) == 0


def test_a_tolerance_can_be_given():
    matrix = np.diag([1.0, -1e-9])
    assert scenario(matrix) == "mixed" and scenario(matrix, tolerance=1e-6) == "divergent"
    assert eigenvalue_label(matrix) == "mixed" and eigenvalue_label(matrix, tolerance=1e-6) == "divergent"
    assert inertia(np.eye(2), matrix) == (1, 1) and inertia(np.eye(2), matrix, tolerance=1e-6) == (1, 0)
    assert projection_scenario(np.eye(2), matrix, tolerance=1e-6) == "divergent"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scenario(np.zeros((2, 3))), "M: got numbers of shape"),
        (lambda: scenario([1.0]), "M: got numbers of shape"),
        (lambda: scenario([[np.nan]]), "M: got .* with NaN or infinity"),
        (lambda: eigenvalue_label("M"), "M: got 'M'"),
        (
            lambda: spectrum(np.zeros((2, 3)), np.zeros((2, 4))),
            r"s_c: got .* expected real numbers \(N, E\) = \(2, 3\)",
        ),
        (lambda: inertia([[1.0]], [[1.0]], tolerance="small"), "tolerance: got 'small'"),
        (lambda: inertia([[1.0]], [[1.0]], tolerance=-1e-9), "tolerance: got -1e-09, expected at least 0"),
        (lambda: scenario([[1.0]], tolerance=-1), "tolerance: got -1.0, expected at least 0"),
        (lambda: eigenvalue_label([[1.0]], tolerance=-1), "tolerance: got -1.0, expected at least 0"),
        (lambda: projection_scenario([[1.0]], [[1.0]], tolerance=-1), "tolerance: got -1.0, expected at least 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
