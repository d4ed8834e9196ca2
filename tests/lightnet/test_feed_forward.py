"""The gated linear unit, and the blocks that LightNet's models put around it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.feed_forward import GLU, glu_width
from lightnet.mixers import LinearAttention
from lightnet.models import Size, stack


def random_like(shapes, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * random.standard_normal(leaf.shape, np.float32), nn.meta.unbox(shapes))


def glu(params, x):
    gate, up = x @ params["gate"]["kernel"], x @ params["up"]["kernel"]
    return (gate / (1 + np.exp(-gate)) * up) @ params["down"]["kernel"]


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * scale


def test_the_equation():
    x = np.random.default_rng(1).standard_normal((2, 3, 5), np.float32)
    unit = GLU(hidden=7)
    variables = random_like(jax.eval_shape(unit.init, jax.random.key(0), x))
    np.testing.assert_allclose(unit.apply(variables, jnp.asarray(x)), glu(variables["params"], x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "expected"), [(768, 2048), (1024, 2752), (32, 128), (24, 64)])
def test_the_width_is_eight_thirds_rounded_up(width, expected):
    assert glu_width(width) == expected
    shapes = jax.eval_shape(GLU().init, jax.random.key(0), jnp.zeros((1, width)))
    assert nn.meta.unbox(shapes)["params"]["down"]["kernel"].shape == (expected, width)


def test_blocks_are_a_norm_and_a_mixer_then_a_norm_and_a_unit():
    backbone = stack(Size(num_layers=1, width=8, num_heads=2, source="ours", hidden=6), LinearAttention)
    x = 3 + np.random.default_rng(1).standard_normal((2, 4, 8), np.float32)
    variables = random_like(jax.eval_shape(backbone.init, jax.random.key(0), x))
    params = variables["params"]
    block = params["blocks_0"]
    mixed, _ = LinearAttention(width=8, num_heads=2).apply(
        {"params": block["mix"]}, jnp.asarray(rms_norm(x, block["mix_norm"]["scale"]))
    )
    expected = x + np.asarray(mixed)
    expected = expected + glu(block["feed_forward"], rms_norm(expected, block["mlp_norm"]["scale"]))
    expected = rms_norm(expected, params["final_norm"]["scale"])
    actual, _ = jax.jit(backbone.apply)(variables, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
