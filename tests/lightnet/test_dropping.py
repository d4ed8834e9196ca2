"""Dropout and stochastic depth: only where random numbers are given, with the right rates, mean and independence."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.backbone import Backbone, Mixer
from lightnet.backbone.stack import Drop

WIDTH, LAYERS = 8, 3


class Average(Mixer):
    """The least that mixes."""

    width: int
    out_scale: float
    dtype: object = None

    @nn.compact
    def __call__(self, x, state=None, *, segment_ids=None, mask=None):
        return nn.Dense(self.width)(x.mean(axis=1, keepdims=True) + x), None

    @nn.compact
    def step(self, x, state):
        return nn.Dense(self.width, name="Dense_0")(x), None


PLAIN = Backbone(Average, LAYERS, WIDTH, mlp_ratio=1)


class Same(nn.Module):
    """In place of a norm."""

    scale_init: object = None
    dtype: object = None

    def __call__(self, x):
        return x


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(
        lambda leaf: 20 * leaf, nn.unbox(jax.jit(PLAIN.init)(jax.random.key(0), jnp.ones((1, 2, WIDTH))))
    )


def apply(model, variables, x, key=None):
    rngs = {} if key is None else {"dropout": jax.random.key(key)}
    return np.asarray(jax.jit(lambda variables, x, rngs: model.apply(variables, x, rngs=rngs)[0])(variables, x, rngs))


def test_nothing_is_dropped_but_where_random_numbers_are_given(variables):
    """And then not the same with another key, and nothing at rates of 0; the parameters are those without."""
    x = np.random.default_rng(0).standard_normal((4, 6, WIDTH), np.float32)
    expected = apply(PLAIN, variables, x)
    for rates in ({"dropout": 0.3}, {"drop_path": 0.3}):
        model = PLAIN.clone(**rates)
        np.testing.assert_array_equal(apply(model, variables, x), expected)
        found = apply(model, variables, x, 1)
        np.testing.assert_array_equal(found, apply(model, variables, x, 1))
        assert np.abs(found - expected).max() > 1e-2 < np.abs(found - apply(model, variables, x, 2)).max()
    np.testing.assert_array_equal(apply(PLAIN, variables, x, 1), expected)


def test_rates_and_means_and_that_paths_are_dropped_example_by_example():
    x = jnp.ones((4000, 3, 2))
    numbers, paths = (
        np.asarray(drop.apply({}, x, rngs={"dropout": jax.random.key(0)})) for drop in (Drop(0.2), Drop(0.0, 0.2))
    )
    # Five standard deviations of a mean of as many draws.
    for found, draws in ((numbers, x.size), (paths, len(x))):
        assert set(np.unique(found)) == {0, np.float32(1 / 0.8)}
        assert abs((found == 0).mean() - 0.2) < 5 * (0.16 / draws) ** 0.5
    assert (paths == paths[:, :1, :1]).all() and not (numbers == numbers[:, :1, :1]).all(axis=(1, 2)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_are_dropped_as_by_flax_and_drawn_once(dtype):
    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.3, deterministic=False)(x)

    def both(module):
        def squares(x):
            y = module.apply({}, x, rngs={"dropout": jax.random.key(4)})
            return jnp.sum(y**2), y

        return jax.value_and_grad(squares, has_aux=True)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7, 3)), dtype)
    chex.assert_trees_all_equal(both(Drop(0.3))(x), both(Flax())(x))
    assert str(jax.make_jaxpr(both(Drop(0.3)))(x)).count("optimization_barrier") == 1


@pytest.mark.parametrize("remat", ["none", "nothing_saveable"])
def test_depth_grows_the_rate_and_both_branches_are_dropped_by_themselves(remat):
    """Each branch adds 1 to 0: an example's sum counts those that are kept, each with its weight."""

    class One(Average):
        def __call__(self, x, *arguments, **options):
            return jnp.ones_like(x), None

    class AlsoOne(nn.Module):
        out_scale: float
        dtype: jnp.dtype

        def __call__(self, x):
            return jnp.ones_like(x)

    model = Backbone(One, LAYERS, WIDTH, channel_mixer=AlsoOne, norm=Same, drop_path=0.5, remat=remat)
    found = np.asarray(model.apply({}, jnp.zeros((2000, 1, WIDTH)), rngs={"dropout": jax.random.key(0)})[0])[:, 0]
    assert (found == found[:, :1]).all()
    kept = 2 + np.array([a / 0.75 + b / 0.5 for a in range(3) for b in range(3)])
    assert np.abs(found[:, :1] - kept).min(axis=1).max() < 1e-5
    shares = [np.mean(np.abs(found[:, 0] - value) < 1e-5) for value in kept]
    chances = [p * q for p in (1 / 16, 6 / 16, 9 / 16) for q in (1 / 4, 2 / 4, 1 / 4)]
    np.testing.assert_allclose(shares, chances, atol=5 * 0.5 / 2000**0.5)


def test_gradients_are_those_of_what_was_kept(variables):
    """Rematerialised blocks draw the same numbers again."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, WIDTH), np.float32))

    def slopes(remat):
        model = PLAIN.clone(dropout=0.2, drop_path=0.4, remat=remat)
        key = {"dropout": jax.random.key(3)}
        return jax.jit(jax.grad(lambda v: jnp.square(model.apply(v, x, rngs=key)[0][..., 0]).sum()))(variables)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), slopes("none"), slopes("nothing_saveable"))


def test_steps_drop_nothing(variables):
    model, x = PLAIN.clone(dropout=0.5, drop_path=0.5), jnp.ones((2, WIDTH))
    step = partial(model.apply, variables, x, (None,) * LAYERS, method="step")
    np.testing.assert_array_equal(step()[0], step(rngs={"dropout": jax.random.key(0)})[0])


@pytest.mark.parametrize("rates", [{"dropout": 1.0}, {"drop_path": -0.1}])
def test_rates_out_of_range_are_refused(rates):
    (name,) = rates
    with pytest.raises(ValueError, match=f"{name}: got .*, expected a rate from 0 and below 1"):
        PLAIN.clone(**rates).init(jax.random.key(0), jnp.ones((1, 2, WIDTH)))


def test_at_a_rate_of_one_nothing_is_left_and_gradients_are_zero():
    def total(x):
        return Drop(dropout=1.0).apply({}, x, rngs={"dropout": jax.random.key(0)}).sum()

    value, gradient = jax.value_and_grad(total)(jnp.ones((2, 3, 4)))
    assert value == 0 and not gradient.any()
