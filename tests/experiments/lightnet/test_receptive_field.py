"""Jacobians, orders and counts of the receptive fields against what can be worked out by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lightnet import receptive_field
from experiments.lightnet.receptive_field import PRESETS, relative_change

SMALL = replace(PRESETS["smoke"], seeds=(3,))


def test_norms_are_those_of_the_weights_of_the_tokens():
    weights = np.random.default_rng(0).standard_normal((2, 4, 4))  # heads, outputs, values
    q = logits = v = np.random.default_rng(1).standard_normal((1, 4, 2, 3)).astype(np.float32)

    def form(q, logits, v):
        return jnp.einsum("hij,bjhk->bihk", jnp.asarray(weights, jnp.float32), v)

    expected = np.sqrt((weights**2).sum(axis=0))
    np.testing.assert_allclose(receptive_field._norms(form, q, logits, v), expected, rtol=1e-5)


def test_the_order_free_form_has_the_jacobian_of_a_softmax_over_tokens():
    q, logits, v = receptive_field._draw(SMALL, 3)
    with jax.enable_x64(True):
        found = receptive_field._norms(receptive_field._forms(SMALL)["order-free"], q, logits, v)
    keys = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    weights = np.einsum("bihk,bjhk->hij", q, keys)
    np.testing.assert_allclose(found, np.sqrt((weights**2).sum(axis=0)), rtol=1e-10)


def test_a_change_is_relative_and_moves_the_places_with_the_tokens():
    x = np.arange(1.0, 5.0).reshape(1, 4, 1)
    places = np.array([10.0, 20.0, 30.0, 40.0])
    order = np.array([2, 0, 3, 1])
    assert relative_change(lambda x, p: x * p[None, :, None], order, [x], [places]) == 0
    by_step = relative_change(lambda x: x * np.arange(4.0)[None, :, None], order, [x])
    before, after = np.array([0, 2, 6, 12.0]), np.array([0 * 3, 1 * 1, 2 * 4, 3 * 2.0])
    expected = np.linalg.norm(after - before[order]) / np.linalg.norm(before)
    assert by_step == pytest.approx(expected)


def test_a_causal_form_depends_on_the_flattening_and_the_order_free_one_does_not():
    """Test 15 of the paper's checklist, with coordinates and without."""
    config = replace(SMALL, grid=(3, 4), volume=(2, 2, 3))
    draw = receptive_field._draw(config, 5)
    columns_first = np.arange(12).reshape(3, 4).T.ravel()
    with jax.enable_x64(True):
        forms = receptive_field._forms(config)
        assert relative_change(forms["order-free"], columns_first, draw) < 1e-14
        assert relative_change(forms["1 scan, c = 0"], columns_first, draw) > 0.1
        assert receptive_field._flattening_change(config, draw) < 1e-14
        # coordinates that stay where they are while the tokens move do change it
        with_positions = receptive_field._with_positions(config, 2)
        places = receptive_field._coordinates(config.grid)
        fixed = relative_change(lambda *x: with_positions(*x, places), columns_first, draw)
    assert fixed > 0.1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("volume", (2, 2, 2), "volume: got"),
        ("scans", (1, 4), "scans: got"),
        ("decay_biases", (), "number of decay_biases"),
        ("heads", 0, "heads: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["cpu"], **{field: value})
