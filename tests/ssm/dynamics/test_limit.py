"""The limit in one dimension against closed forms, an independent integration and its exact properties."""

import math
import subprocess
import sys

import numpy as np
import pytest

from ssm.dynamics import blow_up_bound, simulate
from ssm.dynamics.flow import advanced, flow_of, shares

NAMED = [-0.5, -0.3, 0.6, -0.4, 0.2]
SLOW = [-1.3, -0.2, -0.9, -2.1, -0.04]
TIMES = np.concatenate([[0.0], np.geomspace(1e-6, 1e30, 55)])


def growth(x, s, a, bias=0.0):
    """g_l by the double sum of its definition."""
    steps = [float(np.logaddexp(0, s * token + bias)) for token in x]
    return [
        sum(x[j] ** 2 * steps[j] * math.exp(-a * sum(steps[j + 1 : last + 1])) for j in range(last + 1))
        for last in range(len(x))
    ]


def test_the_scan_is_the_double_sum():
    random = np.random.default_rng(0)
    for _ in range(20):
        x, s, a, bias = random.standard_normal(7), random.normal(), random.exponential(), random.normal()
        x[2] = 0.0
        flow = flow_of(x[:, None], *(np.array([value]) for value in (1.0, s, a, bias)))
        part, log_total = shares(flow, flow.start)
        expected = np.where(x == 0, 0.0, growth(x, s, a, bias))
        np.testing.assert_allclose(part[:, 0] * np.exp(log_total[0]), expected, rtol=1e-12)


@pytest.mark.parametrize("mu", [-1.0, 1.0, -3e4, 2e-5])
@pytest.mark.parametrize("x", [0.7, -2e-3, -50.0])
def test_one_token_of_constant_step_size(mu, x):
    """x^2 = x0^2 / (1 - 2 mu ln2 x0^2 t) at times from far before the only scale to far behind it."""
    scale = 1 / abs(2 * mu * math.log(2) * x * x)
    times = scale * np.concatenate([[0.0], np.geomspace(1e-9, 1e25, 40), 1 - np.geomspace(1e-6, 0.9, 20)])
    found = simulate([x], mu, 0.0, 1.7, times)
    left = 1 - np.sign(mu) * times / scale
    expected = np.where(left > 0, x / np.sqrt(np.where(left > 0, left, 1)), np.nan)
    np.testing.assert_array_equal(np.isnan(found.tokens[:, 0]), np.isnan(expected))
    error = np.abs(found.tokens[:, 0] / expected - 1)[left > 0]
    assert (error <= 1e-10 + 1e-12 / left[left > 0]).all()  # what an error of 1e-12 in the time of the blow-up does
    if mu > 0:
        assert found.blow_up_time == pytest.approx(scale, rel=1e-11)
    else:
        assert found.blow_up_time is None


def by_runge_kutta(x, mu, s, a, bias, step):
    """T* by the classical method of order 4 with steps of fixed size in a time rescaled otherwise."""

    def slope(u):
        g = [mu * value for value in growth(signs * np.exp(u[:-1]), s, a, bias)]
        return np.array([*g, 1.0]) / (1 + max(g))

    signs, u = np.sign(x), np.append(np.log(np.abs(x)), 0.0)
    while u[:-1].max() < math.log(1e7):
        one = slope(u)
        two = slope(u + step / 2 * one)
        three = slope(u + step / 2 * two)
        u = u + step / 6 * (one + 2 * two + 2 * three + slope(u + step * three))
    return u[-1]


def test_the_time_of_the_named_blow_up():
    """The number is that of an independent integration, of steps 1e-3 and 2e-3, which agree to 12 digits."""
    found = simulate(NAMED, 1.0, 1.0, 1.0, [1.0])
    assert found.blow_up_time == pytest.approx(1.011670899312, rel=1e-11)
    assert found.blow_up_time < blow_up_bound(NAMED, 1.0, 1.0) == pytest.approx(2.0037, rel=1e-4)
    np.testing.assert_allclose(found.last_tokens[:2], [-0.571, -0.343], atol=5e-4)
    driver, later = found.last_tokens[2:4]
    assert driver > 1e6 and later / driver == pytest.approx(-0.412, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "mu", "s", "a", "bias"),
    [
        (NAMED, 1.0, 1.0, 1.0, 0.0),
        ([0.3, -1.0, 2.0], 0.7, -2.0, 0.5, 0.4),
        ([-1.0, 0.2, -3.0], 2.0, 0.5, 3.0, -1.0),
    ],
)
def test_the_time_of_a_blow_up_by_another_integration(x, mu, s, a, bias):
    expected = by_runge_kutta(np.array(x), mu, s, a, bias, 2e-2)
    assert simulate(x, mu, s, a, [0.0], bias=bias).blow_up_time == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("x", "mu"), [(SLOW, 1.0), ([*NAMED, 1.5], -1.0), (NAMED, 1.0)])
def test_signs_stay_and_magnitudes_are_monotone(x, mu):
    times = np.linspace(0, 1.0116, 40) if x is NAMED else TIMES
    tokens = simulate(x, mu, 1.0, 1.0, times).tokens
    assert (np.sign(tokens) == np.sign(x)).all()
    assert (mu * np.diff(np.abs(tokens), axis=0) >= 0).all()
    np.testing.assert_array_equal(tokens[0], x)


def test_tokens_that_hardly_move_are_monotone_to_the_last_bit():
    tokens = simulate([-33.0, -31.0, -0.2], 1.0, 1.0, 1.0, np.geomspace(1e-6, 1e4, 400)).tokens
    assert (np.diff(np.abs(tokens), axis=0) >= 0).all()


def test_a_token_depends_on_those_before_it():
    times = [0.3, 1e3, 1e7]
    whole = simulate(SLOW, 1.0, 1.0, 1.0, times).tokens
    for length in (1, 3):
        np.testing.assert_allclose(simulate(SLOW[:length], 1.0, 1.0, 1.0, times).tokens, whole[:, :length], rtol=1e-9)


def test_the_input_output_weight_is_a_unit_of_time():
    times = np.array([0.3, 1e3, 1e7])
    whole = simulate(SLOW, 1.0, 1.0, 0.4, times).tokens
    np.testing.assert_allclose(simulate(SLOW, 7.0, 1.0, 0.4, times / 7).tokens, whole, rtol=1e-9)


def test_both_signs_mirrored_is_the_same():
    whole = simulate(NAMED, 1.0, 1.3, 0.4, [0.3, 0.6])
    mirrored = simulate(-np.array(NAMED), 1.0, -1.3, 0.4, [0.3, 0.6])
    np.testing.assert_array_equal(mirrored.tokens, -whole.tokens)
    assert mirrored.blow_up_time == whole.blow_up_time


def test_the_equation_holds_along_the_way():
    """The derivative by finite differences, for parameters that are nowhere 1."""
    times, h = np.array([0.2, 1.0, 3.0]), 1e-4
    after, before, now = (simulate(SLOW, 0.3, 0.8, 2.5, times + e, bias=-0.6).tokens for e in (h, -h, 0.0))
    expected = [0.3 * x * np.array(growth(x, 0.8, 2.5, -0.6)) for x in now]
    np.testing.assert_allclose((after - before) / (2 * h), expected, rtol=1e-6)


def test_zero_tokens_stay_and_only_let_the_state_fade():
    tokens = simulate([0.0, -0.5, 0.0, 0.0, -0.9], 1.0, 1.0, 1.0, [0.0, 1.0, 1e6]).tokens
    assert (tokens[:, [0, 2, 3]] == 0).all()
    x = np.array([0.0, -0.5, 0.0, 0.0, -0.9])
    h = 1e-5
    slope = (simulate(x, 1.0, 1.0, 1.0, [h]).tokens[0] - x) / h
    np.testing.assert_allclose(slope, x * growth(x, 1.0, 1.0), rtol=1e-4)


@pytest.mark.parametrize(("x", "mu"), [([0.0, 0.0], 1.0), ([1.0, -2.0], 0.0)])
def test_what_does_not_move(x, mu):
    found = simulate(x, mu, 1.0, 1.0, [0.0, 1e30])
    assert found.blow_up_time is None
    np.testing.assert_array_equal(found.tokens, [x, x])


def test_tokens_are_nan_from_the_blow_up_on_and_times_may_come_in_any_order():
    found = simulate(NAMED, 1, 1, 1, [2.0, 0.0, 1.0, 1e30, 1.0])  # integers are numbers, too
    np.testing.assert_array_equal(np.isnan(found.tokens), np.array([1, 0, 0, 1, 0], bool)[:, None] & np.ones(5, bool))
    np.testing.assert_array_equal(found.tokens[2], found.tokens[4])
    end = found.blow_up_time
    assert np.isfinite(simulate(NAMED, 1, 1, 1, [end * (1 - 1e-9)]).tokens).all()
    assert np.isnan(simulate(NAMED, 1, 1, 1, [end * (1 + 1e-9)]).tokens).all()


@pytest.mark.parametrize(
    ("x", "mu", "s", "a"),
    [
        ([-1.0, -0.5], 1.0, 1e-12, 1.0),  # explodes up to 1e12 before its step sizes close
        ([-1.0, 1e-3], 1.0, 1e-12, 1.0),
        pytest.param([1e200, -1e-200, 3.0], -1.0, 1.0, 1.0, marks=pytest.mark.slow),
        ([-1e200, -1.0], 1.0, 1.0, 1.0),
        ([-1.0, -3.0], 1.0, 1e300, 1.0),
        ([-1.0, 0.4, 3.0], -1.0, 1.0, 1e300),
        ([-1.0, -0.4, -3.0], 1.0, 1.0, 1e-12),
        pytest.param([-1.0, -3.0], 1e300, 1.0, 1.0, marks=pytest.mark.slow),
        ([-1.0, -3.0], -1e-300, 1.0, 1.0),
        pytest.param(-(np.cos(np.arange(50)) ** 2), 1.0, 1.0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_no_scale_is_too_large_or_too_small(x, mu, s, a):
    found = simulate(x, mu, s, a, [0.0, 1e-3, 1.0, 1e30])
    blows_up = mu > 0 and max(x) > 0
    assert (found.blow_up_time is not None) == blows_up
    assert np.isfinite(found.tokens[: 2 if blows_up else 4]).all()


def test_a_blow_up_later_than_any_float_is_told():
    found = simulate([1e-200], 1.0, 0.0, 1.0, [1e30])
    assert found.blow_up_time == math.inf and found.tokens[0, 0] == pytest.approx(1e-200, rel=1e-9)


def test_many_at_once_are_each_by_itself():
    """In rescaled time; from the same configurations in another company the same comes out."""
    random = np.random.default_rng(3)
    x, parameters = random.standard_normal((4, 6)), random.standard_normal((4, 6))
    x[1, 2], parameters[2] = 0.0, np.exp(parameters[2])
    together = advanced(flow_of(x, *parameters), [0.01, 5.0, 20.0])
    for one in range(6):
        alone = advanced(flow_of(x[:, [one]], *parameters[:, [one]]), [0.01, 5.0, 20.0])
        np.testing.assert_allclose(together[:, :, one], alone[:, :, 0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x0": []}, r"x0: got numbers of shape \(0,\), expected real numbers \(L,\), no axis empty"),
        ({"x0": [[1.0]]}, "x0: got numbers of shape"),
        ({"x0": [1.0, math.nan]}, "x0: got .* with NaN or infinity, expected finite numbers"),
        ({"x0": [[1.0], [1.0, 2.0]]}, "x0: got list, expected real numbers"),
        ({"x0": "tokens"}, "x0: got 'tokens'"),
        ({"mu": 1j}, "mu: got 1j, expected one real number"),
        ({"mu": math.inf}, "mu: got inf, expected a finite number"),
        ({"s_delta": None}, "s_delta: got None"),
        ({"s_delta": [1.0, 2.0]}, "s_delta: got numbers of shape"),
        ({"a": 0.0}, "a: got 0.0, expected above 0"),
        ({"a": -1}, "a: got -1.0, expected above 0"),
        ({"times": []}, "times: got numbers of shape"),
        ({"times": 1.0}, "times: got 1.0, expected real numbers"),
        ({"times": [0.0, -2.0]}, "times: got -2.0 among them, expected at least 0"),
        ({"times": [math.inf]}, "times: got"),
        ({"bias": math.nan}, "bias: got nan"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    arguments = {"x0": [1.0], "mu": 1.0, "s_delta": 1.0, "a": 1.0, "times": [0.0]} | changed
    with pytest.raises(ValueError, match=f"^{message}"):
        simulate(**arguments)


def test_the_package_needs_no_jax_to_simulate_and_no_matplotlib():
    program = (
        "import sys, ssm\n"
        "ssm.dynamics.simulate([1.0], 1.0, 1.0, 1.0, [0.0]); ssm.dynamics.scenario([[1.0]])\n"
        "from ssm.dynamics import scenario, simulate\n"
        "assert callable(scenario) and ssm.dynamics.scenario is scenario\n"
        "print({'jax', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")
