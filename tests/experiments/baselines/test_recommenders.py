"""Recommenders to compare with: what each place may see, and the attention that is reported."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.lstm import GRU
from experiments.baselines.recommenders import (
    Size,
    attention_recommender,
    attention_weights,
    hidden_states,
    items_mask,
    recurrent_recommender,
)

SIZE = Size(items=7, width=4, layers=2)
ITEMS = jnp.array([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])


def large(model, items=ITEMS):
    """Parameters with which outputs depend on everything that is seen."""
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), items))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "both ways", "recurrent"])
def test_what_a_place_sees(kind):
    model = (
        recurrent_recommender(SIZE) if kind == "recurrent" else attention_recommender(SIZE, 5, causal=kind[0] == "c")
    )
    params = large(model)
    before, after = (jax.jit(model.apply)(params, items) for items in (ITEMS, ITEMS.at[:, 2].set(0)))
    moved = np.abs(before - after).max((0, 2)) > 1e-5
    assert moved.tolist() == [kind == "both ways", kind == "both ways", True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_places_are_counted_from_the_end_of_a_history(causal):
    """What stands behind a longer history has a place that was trained, and padding changes nothing."""
    model = attention_recommender(SIZE._replace(layers=1), 8, causal=causal)
    params, lengths = large(model), jnp.array([3, 5])
    padded = jnp.where(jnp.arange(5)[None] < lengths[:, None], ITEMS, 7)

    @jax.jit
    def scores(params):
        logits = model.apply(params, padded, mask=items_mask(model, lengths, 5))
        return logits[jnp.arange(2), lengths - 1]

    alone = [model.apply(params, ITEMS[row : row + 1, :length])[0, -1] for row, length in enumerate(lengths)]
    np.testing.assert_allclose(scores(params), alone, rtol=1e-4, atol=1e-4)
    of_table = [
        np.abs(row["params"]["places"]["table"]).max(axis=1) > 0
        for row in (jax.grad(lambda p, i=i: scores(p)[i, 2])(params) for i in range(2))
    ]
    assert [np.flatnonzero(used).tolist() for used in of_table] == [[5, 6, 7], [3, 4, 5, 6, 7]]


def test_places_from_the_end_have_no_state_and_no_segments():
    with pytest.raises(ValueError, match="state, segment_ids: expected None"):
        attention_recommender(SIZE, 5, causal=True).init(jax.random.key(0), ITEMS, segment_ids=ITEMS)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_the_reported_attention_is_that_of_each_place(causal):
    """Of one block and one head: the output of attention is the values weighted by it."""
    model = attention_recommender(SIZE._replace(layers=1, heads=1), 5, causal=causal)
    params = large(model)
    weights = attention_weights(model, params, ITEMS)
    assert weights.shape == (1, 2, 1, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    _, kept = model.apply(params, ITEMS, capture_intermediates=True, mutable=["intermediates"])
    mix = kept["intermediates"]["backbone"]["blocks_0"]["mix"]
    values = mix["qkv"]["__call__"][0][:, :, 2, 0]
    out = params["params"]["backbone"]["blocks_0"]["mix"]["out"]["kernel"].reshape(4, 4)
    expected = jnp.einsum("bls,bsk,kd->bld", weights[0, :, 0], values, out)
    np.testing.assert_allclose(mix["__call__"][0][0], expected, rtol=1e-4, atol=1e-4)


def test_scores_are_products_of_states_and_items():
    model = recurrent_recommender(SIZE._replace(layers=1))
    params = large(model)
    h, W = hidden_states(model, params, ITEMS)
    bias = params["params"]["head_bias"][None, None]
    np.testing.assert_allclose(h @ W.T + bias, model.apply(params, ITEMS), rtol=1e-4, atol=1e-4)


def test_the_gru_is_flaxs():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    (y, state), variables = GRU(width=3).init_with_output(jax.random.key(1), x)
    cell, h = next(iter(variables["params"].values())), jnp.zeros((2, 3))
    assert state is None
    for t in range(5):
        step = nn.GRUCell(3).apply({"params": cell}, h, x[:, t])[0]
        h = step
        np.testing.assert_allclose(y[:, t], h, atol=1e-6)
