"""The diffusion transformer around LightNet's mixer: its equations, where it starts and what it depends on."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.diffusion import DiffusionTransformer, time_features
from lightnet.heads import patches, unpatched
from lightnet.mixers import LightNetAttention
from lightnet.models import Size, diffusion

SMALL = Size(num_layers=1, width=16, num_heads=2, source="ours", hidden=24)
ORDER_FREE = partial(LightNetAttention, num_heads=2, causal=False)


def build(model, *arguments, scale=0.3):
    """Random parameters that are far from their initial values, so that every path matters."""
    random = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype), shapes)


def apply(model, *arguments, method=None, **options):
    """`model.apply`, compiled."""
    return jax.jit(partial(model.apply, method=method))(*arguments, **options)


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def images(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))


@pytest.mark.slow
def test_diffusion_starts_at_zero_with_blocks_that_do_nothing():
    model = diffusion(SMALL, (4, 6), (2, 2), num_classes=3)
    x, time, label = images(2, 4, 6, 1), jnp.array([3, 70]), jnp.array([0, 3])
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), x, time, label))
    assert np.all(np.asarray(apply(model, variables, x, time, label)) == 0)
    params = variables["params"]
    params["head"]["kernel"] = jnp.ones_like(params["head"]["kernel"])
    expected = apply(model, variables, x, time, label)
    params["blocks_0"] = jax.tree.map(lambda leaf: leaf * 3, params["blocks_0"])
    np.testing.assert_array_equal(apply(model, variables, x, time, label), expected)
    assert np.abs(expected).max() > 0


@pytest.mark.slow
def test_diffusion_is_conditioned_on_time_and_class_row_by_row():
    model = diffusion(SMALL, (4, 6), (2, 2), num_classes=3, channels_out=2)
    x, time, label = images(2, 4, 6, 1), jnp.array([3, 70]), jnp.array([0, 3])
    variables = build(model, x, time, label)
    expected = apply(model, variables, x, time, label)
    assert expected.shape == (2, 4, 6, 2)
    for other in ((x, time.at[0].set(4), label), (x, time, label.at[0].set(1)), (x.at[0, 0, 0].add(1), time, label)):
        changed = apply(model, variables, *other)
        assert np.abs(changed[0] - expected[0]).max() > 1e-3
        close(changed[1], expected[1])
    for given in ((model, None), (diffusion(SMALL, (4, 6), (2, 2)), label)):
        with pytest.raises(ValueError, match="label: got"):
            given[0].init(jax.random.key(0), x, time, given[1])


@pytest.mark.parametrize(
    ("time", "label", "message"),
    [
        ([3, 70], [0, 4], "label: got the id 4, expected ids from 0 to 3"),
        ([3, 70], [-1, 0], "label: got the id -1"),
        ([3, 70], [1], r"label: got int32\[1\], expected integers \(2,\)"),
        ([3, 70], [0.0, 1.0], r"label: got float32\[2\], expected integers"),
        ([3, 70, 1], [0, 1], r"time: got shape \[3\], expected \(2,\)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_by_name(time, label, message):
    model = diffusion(SMALL, (4, 6), (2, 2), num_classes=3)
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), images(2, 4, 6, 1), jnp.array(time), jnp.array(label))


def test_times_have_pairs_of_features():
    with pytest.raises(ValueError, match="size: got 5, expected an even number from 2"):
        time_features(jnp.zeros(2), size=5)


def test_the_equations_of_a_modulated_block():
    model = DiffusionTransformer(ORDER_FREE, num_layers=1, width=8, patch=(2,), channel_mixer=Doubled)
    x, time = images(2, 6, 1), jnp.array([3, 70])
    variables = build(model, x, time)
    p = jax.tree.map(np.asarray, variables["params"])
    c = np.asarray(time_features(time))
    for name in ("time_in", "time_out"):
        c = np.asarray(nn.silu(c @ p[name]["kernel"] + p[name]["bias"]))  # the second is in front of each modulation

    def modulation(params, parts):
        return np.split((c @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])[:, None], parts, axis=-1)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    tokens = np.asarray(patches(x, (2,))) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    b1, s1, g1, b2, s2, g2 = modulation(p["blocks_0"]["modulation"], 6)
    mixer = ORDER_FREE(width=8)
    y, _ = mixer.apply({"params": p["blocks_0"]["mix"]}, jnp.asarray((1 + s1) * norm(tokens) + b1))
    tokens = tokens + g1 * np.asarray(y)
    tokens = tokens + g2 * 2 * ((1 + s2) * norm(tokens) + b2)
    b, s = modulation(p["final_modulation"], 2)
    expected = ((1 + s) * norm(tokens) + b) @ p["head"]["kernel"] + p["head"]["bias"]
    close(apply(model, variables, x, time), unpatched(jnp.asarray(expected), (3,), (2,)))


class Doubled(nn.Module):
    """A channel mixer that is easy to calculate."""

    out_scale: float = 0.0
    dtype: object = None

    def __call__(self, x):
        return 2 * x
