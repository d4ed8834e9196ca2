"""The residual stack against its limit: the error that is measured, its order, and the time of the comparison."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.token_dynamics import discrete_stack
from experiments.token_dynamics.discrete_stack import draw, order, time_of_comparison
from ssm.dynamics import simulate_tokens
from ssm.dynamics.limit_tokens import token_flow

SMOKE = discrete_stack.PRESETS["smoke"]


def test_the_order_is_that_of_the_smaller_half():
    steps = 2.0 ** -np.arange(8)
    assert order(steps, 3 * steps**1.5) == pytest.approx(1.5)
    assert order(steps, np.where(steps > 0.1, 1.0, steps**2)) == pytest.approx(2.0)


@pytest.mark.parametrize("growth", [1.2, 2.0])
def test_it_is_compared_before_the_tokens_have_grown(growth):
    config = replace(SMOKE, time=3.0, growth=growth)
    layer = draw(config, 4)
    arguments = (layer.x, layer.s_c.T @ layer.s_b, layer.s_delta, layer.a)
    time = time_of_comparison(config, token_flow(*arguments))
    tokens = simulate_tokens(*arguments, [time, 0.9 * time]).tokens
    norms = np.linalg.norm(tokens.reshape(2, -1), axis=1) / np.linalg.norm(layer.x)
    assert time < 3.0 and norms[1] < growth < norms[0] < 1.1 * growth


def test_tokens_that_hardly_move_are_compared_at_the_fixed_time():
    config = replace(SMOKE, size=0.01)
    layer = draw(config, 0)
    flow = token_flow(layer.x, layer.s_c.T @ layer.s_b, layer.s_delta, layer.a)
    assert time_of_comparison(config, flow) == config.time


@pytest.mark.slow
def test_the_run_measures_order_and_distance(tmp_path):
    config = replace(SMOKE, seeds=(0, 6), length=3, width=2, states=1, size=0.3, log_depths=(4, 6, 8))
    result = discrete_stack.run(config, tmp_path)
    errors = result.series["errors"]["error"]
    assert errors.shape == (2, 3) and (np.diff(errors, axis=1) < 0).all()
    assert result.measured["token_dynamics/abstract-continuous-limit"] == errors[:, -1].tolist()
    np.testing.assert_allclose(result.measured["token_dynamics/discrete-stack-slope"], 1.0, atol=0.05)
    assert result.tables["errors"]["depth"] == [16, 64, 256] * 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("time", 0.0, "time: got 0"),
        ("growth", 1.0, "growth: got 1"),
        ("log_depths", (3, 4), "log_depths: how many: got 2"),
        ("log_depths", (3, 5, 4), "expected rising numbers"),
        ("log_depths", (3, 5, 40), "the largest of log_depths: got 40"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **{field: value})
