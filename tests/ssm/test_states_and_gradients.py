"""Every mixer of this package in double precision: gradients through outputs and states, and states at any token."""

from dataclasses import fields
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.backbone import Backbone
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2
from ssm.s4 import S4
from ssm.s4d import S4D
from ssm.s5 import S5
from tests.ssm.draws import randomised

WIDTH, BATCH = 4, 2
MIXERS = {
    "mamba": Mamba(WIDTH, state_size=2),
    "mamba-2": Mamba2(WIDTH, state_size=2, head_size=2, num_groups=2),
    "s4": S4(WIDTH, state_size=4),
    "s4d": S4D(WIDTH, state_size=4),
    "s5": S5(WIDTH, state_size=4),
}
# What makes a rate times a step 20 for each of them: what is written is gone a token later.
FORGETFUL = {
    "mamba": {"dt_bias": 20.0, "A_log": 0.0},
    "mamba-2": {"dt_bias": 20.0, "A_log": 0.0},
    "s4": {"log_step": np.log(40.0), "log_A_real": np.log(0.5)},
    "s4d": {"log_step": np.log(40.0), "log_A_real": np.log(0.5)},
    "s5": {"log_step": np.log(40.0), "Lambda_re": -0.5},
}
pytestmark = pytest.mark.slow


def normal(leaf, random):
    """Standard normal numbers like an array, real or complex."""
    x = random.standard_normal(leaf.shape)
    return x + 1j * random.standard_normal(leaf.shape) if np.iscomplexobj(leaf) else x


def drawn(name, length):
    """A mixer's parameters, a sequence and a state that something came before; double precision."""
    random, mixer = np.random.default_rng(length), MIXERS[name]
    x = random.standard_normal((BATCH, length, WIDTH))
    empty = jax.eval_shape(lambda: mixer.init_state(BATCH))
    return randomised(mixer, x, 0.4), x, jax.tree.map(lambda leaf: normal(leaf, random), empty)


def summed(tree):
    """A real number that depends on every real and imaginary part."""
    return sum(jnp.sum(jnp.sin(part)) for leaf in jax.tree.leaves(tree) for part in (leaf.real, leaf.imag))


def total(name, params, x, state, mask=None):
    """A function of all outputs and of the state behind them."""
    y, after = MIXERS[name].apply({"params": params}, x, state, mask=mask)
    return summed((y, after))


# One token, fewer than taps, and an odd number.
@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("name", MIXERS)
def test_gradients_are_those_of_finite_differences(name, length):
    with jax.enable_x64(True):
        point, random = drawn(name, length), np.random.default_rng(0)
        along = jax.tree.map(lambda leaf: normal(leaf, random), point)

        @jax.jit
        def at(distance):
            return total(name, *jax.tree.map(lambda leaf, d: leaf + distance * d, point, along))

        # The fourth order's error is about 1e-4^4, and rounding is 1e-16 / 1e-4.
        h = 1e-4
        expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        gradient = jax.jit(jax.grad(lambda point: total(name, *point)))(point)
        # The gradient of a function of z = a + i b is dF/da - i dF/db in JAX.
        parts = [jnp.sum(g * d).real for g, d in zip(*map(jax.tree.leaves, (gradient, along)), strict=True)]
        assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradient[2]))
        np.testing.assert_allclose(sum(parts), expected, rtol=0, atol=1e-9 * sum(map(abs, parts)))


@cache
def in_two_parts(name):
    """The sum over two parts of a sequence, and its gradient; the token between them is an argument."""

    def loss(point, split, length):
        params, x, state = point
        early = jnp.arange(length)[None] < jnp.full((BATCH, 1), split)
        first, middle = MIXERS[name].apply({"params": params}, x, state, mask=early)
        second, last = MIXERS[name].apply({"params": params}, x, middle, mask=~early)
        return summed((first, second, last))

    return jax.jit(jax.value_and_grad(loss), static_argnums=2)


@pytest.mark.parametrize("name", MIXERS)
def test_two_parts_are_the_whole_with_gradients_at_every_split(name):
    length = 9
    with jax.enable_x64(True):
        point = drawn(name, length)
        whole = jax.jit(jax.value_and_grad(lambda point: total(name, *point)))(point)
        for split in range(length + 1):
            parts = in_two_parts(name)(point, split, length)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), parts, whole)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_are_the_same_where_a_backbone_stores_products_of_matrices_only(name):
    options = {field.name: getattr(MIXERS[name], field.name) for field in fields(MIXERS[name])}
    mixer = partial(type(MIXERS[name]), **{key: options[key] for key in options.keys() - {"parent", "name"}})
    backbone = Backbone(mixer, num_layers=2, width=WIDTH, mlp_ratio=0)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, 5, WIDTH)))
        params = randomised(backbone, x)

        def gradient(backbone):
            return jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(backbone.apply({"params": params}, x)[0]))))(params)

        found, expected = gradient(backbone.clone(remat="dots_saveable")), gradient(backbone)
    for leaf, exact in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.isfinite(exact).all()
        np.testing.assert_allclose(leaf, exact, rtol=0, atol=1e-10 * np.abs(exact).max())


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_are_finite_where_every_token_forgets_all_before(name):
    params, x, state = jax.tree.map(jnp.asarray, drawn(name, 256))
    params |= {key: jnp.full_like(params[key], value) for key, value in FORGETFUL[name].items()}
    gradient = jax.jit(jax.grad(lambda point: total(name, *point)))((params, x, state))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
