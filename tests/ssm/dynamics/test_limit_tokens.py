"""The limit in any dimension: equal to the one-dimensional one, and to what can be said in closed form of more."""

import itertools
import math

import numpy as np
import pytest

from ssm.dynamics import residual_stack, simulate, simulate_tokens
from ssm.dynamics.limit_tokens import _explicit, _implicit, _steps, token_flow, velocities


def draw(seed=0, length=4, width=3):
    random = np.random.default_rng(seed)
    x, M, s_delta = (random.standard_normal((n, width)) for n in (length, width, width))
    return x, M, s_delta, random.exponential(size=width), random.standard_normal(width)


def test_the_velocity_is_the_double_sum():
    x, M, s_delta, a, bias = draw()
    steps = np.log1p(np.exp(x @ s_delta.T + bias))
    expected = np.zeros_like(x)
    for d in range(3):
        for now in range(4):
            for j in range(now + 1):
                decay = math.exp(-a[d] * steps[j + 1 : now + 1, d].sum())
                expected[now, d] += x[now] @ M @ x[j] * steps[j, d] * decay * x[j, d]
    np.testing.assert_allclose(velocities(token_flow(x, M, s_delta, a, bias), x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "mu", "times"),
    [
        ([0.4, -1.1, 0.3], -0.7, [0.0, 2.0, 1e6, 1e3]),
        ([-0.4, -1.1, -0.3], 0.7, [0.0, 2.0, 1e6]),
        ([-0.5, -0.3, 0.6, -0.4, 0.2], 1.0, [0.5, 0.8, 3.0]),
    ],
)
def test_one_dimension_is_the_same(x, mu, times):
    one = simulate(x, mu, 1.3, 0.6, times, bias=0.2)
    more = simulate_tokens(np.array(x)[:, None], [[mu]], [[1.3]], [0.6], times, bias=[0.2])
    np.testing.assert_allclose(more.tokens[..., 0], one.tokens, rtol=1e-8)
    assert (one.blow_up_time is None) == (more.blow_up_time is None)
    if one.blow_up_time is not None:
        assert more.blow_up_time == pytest.approx(one.blow_up_time, rel=1e-8)


@pytest.mark.parametrize("sign", [-1, 1])
def test_one_token_of_constant_step_sizes_moves_on_its_ray(sign):
    x, M, _, a, _ = draw(length=1)
    M = sign * (M @ M.T + np.eye(3))
    steps = np.full(3, math.log1p(math.exp(0.4)))
    rate = 2 * (x[0] @ M @ x[0]) * steps[0]
    times = np.array([0.1, 0.9, 2.0]) / abs(rate)
    found = simulate_tokens(x, M, np.zeros((3, 3)), a, times, bias=np.full(3, 0.4))
    left = 1 - rate * times
    expected = np.where(left > 0, 1 / np.sqrt(np.abs(left)), np.nan)[:, None] * x[0]
    np.testing.assert_allclose(found.tokens[:, 0], expected, rtol=1e-9)
    if sign > 0:
        assert found.blow_up_time == pytest.approx(1 / rate, rel=1e-8)


def test_an_explosive_growth_that_ends_is_no_blow_up():
    """Step sizes close when tokens have reached 1e10, and everything before happens in a moment."""
    one = simulate([-1.0, -0.3], 1.0, 1e-10, 1.0, [1.0, 1e3])
    more = simulate_tokens([[-1.0], [-0.3]], [[1.0]], [[1e-10]], [1.0], [1.0, 1e3])
    assert more.blow_up_time is None and np.abs(one.tokens).min() > 1e10
    np.testing.assert_allclose(more.tokens[..., 0], one.tokens, rtol=1e-4)
    assert simulate_tokens([[-1.0], [-0.3]], [[1.0]], [[0.0]], [1.0], [1.0, 1e3]).blow_up_time is not None


def test_a_blow_up_where_no_step_size_feels_it():
    """The token lies in the kernel of S_Delta."""
    found = simulate_tokens([[1.0, 1.0]], np.eye(2), [[1.0, -1.0], [2.0, -2.0]], [1.0, 1.0], [10.0])
    assert found.blow_up_time == pytest.approx(1 / (4 * math.log(2)), rel=1e-8)


def test_what_does_not_move():
    x, _, s_delta, a, _ = draw()
    found = simulate_tokens(x, np.zeros((3, 3)), s_delta, a, [0.0, 1e9])
    np.testing.assert_array_equal(found.tokens, [x, x])
    assert found.blow_up_time is None


def test_both_methods_agree():
    flow = token_flow(*draw(3))
    steps = _explicit(flow)
    first = next(steps)
    implicit = _implicit(flow, first)
    theta = 0.5
    for way in (steps, implicit):
        step = next(step for step in way if step.theta > theta)
        tokens = step.at(np.array([theta]))
        if way is steps:
            expected = tokens
    np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-4)


def test_tokens_held_by_a_large_one_do_not_stop_the_integration():
    """A case in which explicit steps shrink to 1e-6 while hardly anything moves."""
    random = np.random.default_rng(3)
    M, x, s_delta = random.standard_normal((2, 2)), random.standard_normal((6, 2)), random.standard_normal((2, 2))
    flow = token_flow(x, M, s_delta, [1.0, 1.0])
    taken = list(itertools.takewhile(lambda step: step.theta < 2, _steps(flow)))
    step = taken[-1]
    assert 600 < len(taken) < 1500
    assert np.abs(step.tokens[-1]).max() == pytest.approx(5195.8, rel=1e-3)


@pytest.mark.slow
def test_the_residual_stack_tends_to_it():
    import jax

    with jax.enable_x64(True):
        x, M, s_delta, a, bias = draw(1)
        x = 0.4 * x
        exact = simulate_tokens(x, M, s_delta, a, [1.0], bias=bias).tokens[0]
        errors = []
        for depth in (64, 128, 256, 512):
            stack = residual_stack(x, M, np.eye(3), s_delta, a, bias, step=1 / depth, depth=depth)
            errors.append(np.abs(stack[-1] - exact).max())
        ratios = np.array(errors[:-1]) / errors[1:]
        np.testing.assert_allclose(ratios, 2.0, rtol=0.05)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, [1.0], "x0: got numbers of shape"),
        (1, np.zeros((3, 2)), r"matrix: got .* expected real numbers \(D, D\) = \(3, 3\)"),
        (2, np.zeros((2, 2)), "s_delta: got"),
        (3, 1.0, "a: got 1.0, expected real numbers"),
        (3, [1.0, 0.0, 1.0], "a: got 0.0 among them, expected above 0"),
        (4, [-1.0], "times: got -1.0 among them"),
        (5, [0.0], "bias: got numbers of shape"),
    ],
)
def test_wrong_arguments_are_named(position, value, message):
    x, M, s_delta, a, bias = draw()
    arguments = [x, M, s_delta, a, [0.0], bias]
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        simulate_tokens(*arguments[:5], bias=arguments[5])
