"""SeqPE's auxiliary losses on digits: what they reach, and what is measured of positions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lightnet import classification, seqpe
from lightnet.positions import grid_coordinates

SMOKE = seqpe.PRESETS["smoke"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_losses_reach_the_positions_alone_by_their_weight():
    model = classification.model_of(SMOKE.images, seqpe.VARIANT, (8, 8))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]

    @jax.jit
    def losses(params, key):
        return [jax.value_and_grad(lambda p, w=w: seqpe._of_positions(SMOKE, w, model, p, key))(params) for w in (1, 3)]

    (once, gradient), (thrice, _) = losses(params, jax.random.key(1))
    assert once > 0
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-5)
    moved = {name for name, leaves in gradient.items() if any(jnp.any(leaf) for leaf in jax.tree.leaves(leaves))}
    assert moved == {"places"}


def test_products_that_fall_with_the_distance_are_in_perfect_order():
    at = np.asarray(grid_coordinates((10, 10)), np.float64)
    size, vectors = np.linalg.eigh(np.exp(-0.005 * np.square(at[:, None] - at[None]).sum(axis=-1)))
    roots = vectors * np.sqrt(np.maximum(size, 0))  # whose products are the kernel, which falls with the distance

    class Kernel:
        def apply(self, variables, at, method):
            del method
            return variables["params"][10 * at[:, 0] + at[:, 1]]

    stacked = jnp.stack([jnp.asarray(roots), jnp.asarray(np.random.default_rng(0).normal(size=(100, 100)))])
    ordered, random = seqpe.order_of_positions(SMOKE, Kernel(), stacked)
    assert ordered < -0.99 and abs(random) < 0.1


def test_differences_are_those_of_the_weights_seed_by_seed():
    config = replace(SMOKE, seeds=(0, 1), weights=(0.1, 0.0))
    rows = {"weight": [0.1, 0.1, 0.0, 0.0], "accuracy": [97.0, 95.0, 96.0, 95.5], "order": [-0.9, -0.8, -0.1, -0.2]}
    measured = seqpe._measured(config, rows)
    np.testing.assert_allclose(measured["lightnet/seqpe-losses-cost-no-accuracy"], [1.0, -0.5])
    np.testing.assert_allclose(measured["lightnet/seqpe-losses-order-positions"], [-0.8, -0.6])
    assert seqpe._measured(SMOKE, rows) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extent": 7}, "extent: got 7"),
        ({"weights": (-0.1,)}, "the smallest of weights: got -0.1"),
        ({"weights": (0.1, 0.1)}, "weights: expected each of them once"),
    ],
)
def test_values_out_of_range_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **change)
