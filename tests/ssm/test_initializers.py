"""HiPPO-LegS: what it means, its forms, and the transitions and steps that models start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import legendre

from ssm.initializers import (
    as_complex,
    as_reals,
    complex_normal_init,
    hippo_legs,
    legs_dplr,
    legs_normal_part,
    legs_pairs,
    log_step_init,
    s4d_transitions,
)


@pytest.mark.parametrize("power", [0, 1, 4])
def test_the_state_of_legs_holds_the_legendre_coefficients_of_the_past(power):
    """Of u(t) = t^k these are t^k c, and t h' = A h + B u makes them k c = A c + B at t = 1."""
    A, B = hippo_legs(6)
    nodes, weights = legendre.leggauss(8)
    polynomials = legendre.legvander(nodes, 5) * np.sqrt(2 * np.arange(6) + 1)
    c = polynomials.T @ (weights / 2 * ((nodes + 1) / 2) ** power)
    np.testing.assert_allclose(A @ c + B, power * c, rtol=0, atol=1e-12)


@pytest.mark.parametrize("states", [1, 2, 5, 16, 64])
def test_legs_is_diagonal_plus_low_rank(states):
    A, B = hippo_legs(states)
    S, _ = legs_normal_part(states)
    np.testing.assert_allclose(S + S.T, -np.eye(states), rtol=0, atol=1e-12)
    Lambda, P, rotated, V = legs_dplr(states)
    np.testing.assert_allclose(V.conj().T @ V, np.eye(states), rtol=0, atol=1e-12)
    scale = np.abs(A).max()
    np.testing.assert_allclose((V * Lambda) @ V.conj().T, S, rtol=0, atol=1e-12 * scale)
    again = V @ (np.diag(Lambda) - np.outer(P, P.conj())) @ V.conj().T
    np.testing.assert_allclose(again, A, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(V @ rotated, B, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(Lambda.real, -0.5, rtol=1e-12)
    assert np.abs(P.imag).max() < 1e-12 and P.real.min() > 0


def test_half_of_the_pairs_is_all_of_them():
    A, B = hippo_legs(8)
    Lambda, P, rotated, V = legs_pairs(8)
    assert np.all(np.diff(Lambda.imag) > 0) and Lambda.imag.min() > 0
    h = np.random.default_rng(0).standard_normal(8)
    x = V.conj().T @ h
    np.testing.assert_allclose(2 * (V @ x).real, h, rtol=0, atol=1e-12)
    # A h with the rank of one by 2 Re over the half
    changed = Lambda * x - P * 2 * (P.conj() @ x).real
    np.testing.assert_allclose(2 * (V @ changed).real, A @ h, rtol=0, atol=1e-12)
    np.testing.assert_allclose(2 * (V @ rotated).real, B, rtol=0, atol=1e-12)


def test_initial_transitions_of_s4d_are_the_published_ones():
    np.testing.assert_allclose(s4d_transitions("lin", 8), -0.5 + 1j * np.pi * np.arange(4), rtol=1e-15)
    np.testing.assert_allclose(s4d_transitions("inv", 16).imag[:4], [76.4, 22.1, 11.2, 6.6], atol=0.06)
    np.testing.assert_allclose(s4d_transitions("legs", 16).imag[:4], [81.0, 25.6, 13.8, 8.4], atol=0.06)
    for name in ("lin", "inv", "legs"):
        assert s4d_transitions(name, 16).shape == (8,)
        np.testing.assert_allclose(s4d_transitions(name, 16).real, -0.5, rtol=1e-12)
    np.testing.assert_array_equal(s4d_transitions("real", 3), [-1, -2, -3])


def test_steps_are_log_uniform():
    low, high = np.log(1e-3), np.log(1e-1)
    steps = np.float64(log_step_init(1e-3, 1e-1)(jax.random.key(0), (1000,)))
    error = (high - low) / np.sqrt(12 * len(steps))
    assert low - 1e-5 <= steps.min() < low + 0.05 and high - 0.05 < steps.max() <= high + 1e-5
    assert abs(steps.mean() - (low + high) / 2) < 4 * error
    assert abs(steps.std() - (high - low) / np.sqrt(12)) < 4 * error


def test_complex_parameters_are_two_reals():
    z = np.random.default_rng(0).standard_normal((2, 3, 2)) @ [1, 1j]
    assert as_reals(z).shape == (2, 3, 2)
    np.testing.assert_allclose(as_complex(as_reals(z)), z, rtol=1e-6)
    assert as_complex(jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.complex64
    drawn = complex_normal_init(jax.random.key(0), (1000, 2))
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), np.eye(2) / 2, atol=4 * 0.5 * np.sqrt(2 / 1000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lin", 5), "state_size: got 5, expected an even number of at least 2"),
        (("legs", 0), "state_size: got 0, expected an even number"),
        (("real", 0), "state_size: got 0, expected at least 1"),
        (("cubic", 4), "transitions: got 'cubic', expected one of lin, inv, legs, real"),
    ],
)
def test_what_makes_no_sense_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        s4d_transitions(*arguments)
