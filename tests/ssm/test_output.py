"""What follows a linear state space model, against its formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from ssm.output import OUTPUT_ACTIVATIONS, OutputBlock
from tests.ssm.draws import randomised

WIDTH = 5


def formula(name, p, y):
    """The four forms, by their definitions."""
    u = y * (1 + erf(y / np.sqrt(2))) / 2
    if name == "gelu":
        return u
    gate = 1 / (1 + np.exp(-(u @ p["gate"]["kernel"] + p["gate"]["bias"])))
    if name == "full_glu":
        return (u @ p["value"]["kernel"] + p["value"]["bias"]) * gate
    return (u if name == "half_glu1" else y) * gate


@pytest.mark.parametrize("name", OUTPUT_ACTIVATIONS)
def test_equals_its_formula(name):
    with jax.enable_x64(True):
        block, y = OutputBlock(WIDTH, name), np.random.default_rng(0).standard_normal((2, 3, WIDTH))
        params = {} if name == "gelu" else randomised(block, y)
        found = jax.jit(block.apply)({"params": params}, y)
        np.testing.assert_allclose(found, formula(name, params, y), rtol=0, atol=1e-13)


def test_the_scale_is_that_of_the_value():
    params = OutputBlock(64, out_scale=0.5).init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    assert abs(params["value"]["kernel"].value.std() / 0.5 - 1) < 0.05
    assert abs(params["gate"]["kernel"].value.std() * 8 - 1) < 0.05


def test_an_unknown_name_raises():
    with pytest.raises(ValueError, match="output_activation: got 'relu', expected one of full_glu, half_glu1"):
        OutputBlock(WIDTH, "relu").init(jax.random.key(0), jnp.zeros((1, WIDTH)))
