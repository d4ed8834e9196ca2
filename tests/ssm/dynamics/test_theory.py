"""Regimes, constants, laws and the bound against the simulation, at parameters that are nowhere special."""

import math

import numpy as np
import pytest

from ssm.dynamics import (
    blow_up_bound,
    blow_up_law,
    convergence_constants,
    regime,
    simulate,
    slow_first_token,
)

MIXED = [0.9, -1.4, 0.3, 0.6, -2.0]
SLOW = [-0.5, -0.3, -1.6, -0.4]


@pytest.mark.parametrize(
    ("x", "mu", "s_delta", "expected"),
    [
        (MIXED, -1, 1, "convergent"),
        (MIXED, -1, 0, "convergent"),
        ([0.0, -1.0], -1, -1, "convergent"),
        (SLOW, 1, 1, "slow divergence"),
        (SLOW, 1, -1, "fast divergence"),
        (SLOW, 1, 0, "fast divergence"),
        (MIXED, 1, 1, "fast divergence"),
        ([0.0, -1.0], 1, 1, "slow divergence"),
        ([0.0, 1e-30], 1, 1, "fast divergence"),
        (MIXED, 0, 1, "constant"),
        ([0.0, 0.0], 1, 1, "constant"),
    ],
)
def test_the_regime_is_that_of_the_conditions(x, mu, s_delta, expected):
    assert regime(x, mu, s_delta) == expected
    blow_up = simulate(x, mu, s_delta, 1.0, [0.0]).blow_up_time
    assert (blow_up is not None) == (expected == "fast divergence")
    assert (blow_up_bound(x, mu, s_delta) < math.inf) == (expected == "fast divergence")


@pytest.mark.parametrize("s_delta", [1.0, -0.7])
@pytest.mark.parametrize(("a", "bias"), [(1.0, 0.0), (0.3, 0.0), (1.0, 0.8)])
def test_converging_tokens_have_these_constants(s_delta, a, bias):
    t = 1e30  # the error falls like t^-(1 - e^(-a D0)), with powers of ln t for later tokens
    found = simulate(MIXED, -1.3, s_delta, a, [t], bias=bias).tokens[0] * math.sqrt(t)
    constants = convergence_constants(MIXED, -1.3, a, bias=bias)
    np.testing.assert_allclose(np.abs(found), constants, rtol=1e-3)


def test_the_constants_of_the_first_and_of_later_tokens():
    """At mu = -1 and a = 1 they are 0.8493 and 0.6006, reached to 1 % at t = 1e6."""
    first, *later = convergence_constants([0.5, -0.8, 1.0], -1.0, 1.0)
    assert first == pytest.approx((2 * math.log(2)) ** -0.5) and later == pytest.approx([first * math.sqrt(0.5)] * 2)
    found = simulate([0.5, -0.8, 1.0], -1.0, 1.0, 1.0, [1e6]).tokens[0] * 1e3
    np.testing.assert_allclose(np.abs(found), [first, *later], rtol=0.01)


def test_zeros_in_between_let_the_state_fade_further():
    x = [0.0, 0.7, 0.0, 0.0, -0.5, 1.0]
    found = np.abs(simulate(x, -1.0, 1.0, 0.4, [1e18]).tokens[0]) * 1e9
    np.testing.assert_allclose(found, convergence_constants(x, -1.0, 0.4), rtol=1e-3)
    assert convergence_constants([0.0, 0.0], -1.0, 1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("mu", "s_delta", "bias"), [(1.0, 1.0, 0.0), (0.2, 3.0, 0.0), pytest.param(1.0, 0.5, 2.0, marks=pytest.mark.slow)]
)
def test_the_first_token_of_the_slow_divergence(mu, s_delta, bias):
    times = np.array([1e12, 1e20, 1e30])
    found = simulate(SLOW, mu, s_delta, 1.0, times, bias=bias).tokens
    law = slow_first_token(times, mu, s_delta, bias=bias)
    error = np.abs(np.abs(found[:, 0]) / law - 1)
    assert error[-1] < 2e-3 and (np.diff(error) < 0).all()
    ratios = np.abs(found / found[:, :1])
    np.testing.assert_allclose(ratios, ratios[:1] * np.ones((3, 1)), rtol=1e-3)
    assert (ratios[0, 1:] >= 1).all()


def test_the_law_of_the_first_token_solves_its_equation():
    times, mu, s, bias = np.array([1e5, 1e30, 1e200]), 0.3, 2.5, -0.4
    x = slow_first_token(times, mu, s, bias=bias)
    np.testing.assert_allclose(s * x, np.log(times) + 3 * np.log(x) + math.log(mu * s) + bias, rtol=1e-12)
    np.testing.assert_array_equal(slow_first_token(times, mu, -s, bias=bias), x)
    assert np.isnan(slow_first_token([0.0, 1e-3], mu, s)).all()


@pytest.mark.parametrize(("s_delta", "bias"), [(1.0, 0.0), (-2.0, 1.0), (0.0, 0.0), (0.0, -1.0)])
def test_the_law_of_a_blow_up(s_delta, bias):
    x = -np.sign(s_delta or -1) * np.array([0.5, 0.3, -0.9])  # the last one blows up, or the first where all can
    end = simulate(x, 1.7, s_delta, 1.0, [0.0], bias=bias).blow_up_time
    constant, power = blow_up_law(1.7, s_delta, bias=bias)
    assert end is not None
    left = end * 1e-8
    found = np.abs(simulate(x, 1.7, s_delta, 1.0, [end - left], bias=bias).tokens[0])
    assert found.max() * left**power == pytest.approx(constant, rel=0.02)


def test_the_bound_is_that_of_the_largest_driver_and_holds():
    random = np.random.default_rng(1)
    for _ in range(15):
        x, mu, s, a, bias = random.standard_normal(4), random.exponential(), random.normal(), 1.0, random.normal()
        bound, blow_up = blow_up_bound(x, mu, s, bias=bias), simulate(x, mu, s, a, [0.0], bias=bias).blow_up_time
        driving = x[s * x >= 0]
        assert (blow_up is None) == (not driving.size)
        if driving.size:
            assert bound == pytest.approx(1 / (2 * mu * math.log1p(math.exp(bias)) * (driving**2).max()))
            assert blow_up is not None and 0 < blow_up <= bound


@pytest.mark.filterwarnings("error")
def test_step_sizes_that_underflow_leave_what_a_float_can_hold():
    """D0 = e^-800 (1 + o(1)): c_1 = e^400 / sqrt(2 |mu|), and later tokens c_1 sqrt(k a D0)."""
    constants = convergence_constants([1.0, 0.0, -2.0, 3.0], -1.3, 0.7, bias=-800)
    later = [math.sqrt(2 * 0.7 / 2.6), math.sqrt(0.7 / 2.6)]
    np.testing.assert_allclose(constants, [math.exp(400) / math.sqrt(2.6), 0, *later], rtol=1e-12)
    assert convergence_constants([1.0, 2.0], -1.0, 1.0, bias=-2000)[0] == math.inf
    assert blow_up_bound([1e-3, 1e160], 1.7, 1.0, bias=-800) == pytest.approx(
        math.exp(800 - 320 * math.log(10)) / 3.4, rel=1e-12
    )
    assert blow_up_bound([1.0], 1.0, 1.0, bias=-800) == math.inf
    assert blow_up_law(2.0, 0.0, bias=-800) == (pytest.approx(math.exp(400) / 2, rel=1e-12), 0.5)
    assert np.isnan(slow_first_token([0.0, 1e30], 1.0, 1.0, bias=-5000)).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="mu: got 1.0, expected below 0"):
        convergence_constants([1.0], 1.0, 1.0)
    with pytest.raises(ValueError, match="a: got 0.0, expected above 0"):
        convergence_constants([1.0], -1.0, 0.0)
    with pytest.raises(ValueError, match="s_delta: got 0.0"):
        slow_first_token([1.0], 1.0, 0.0)
    with pytest.raises(ValueError, match="mu: got -1.0, expected above 0"):
        blow_up_law(-1.0, 1.0)
    with pytest.raises(ValueError, match="x0: got numbers of shape"):
        regime([[1.0]], 1.0, 1.0)
