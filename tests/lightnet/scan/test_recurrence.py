"""What segments and masks mean for a recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.recurrence import only_real, tokens_of
from tests.lightnet.scan.calls import CALLS, operands


def begins_by_hand(ids, mask):
    """For one row, false at each real token whose id is another than the last real token's."""
    keep, previous = [], None
    for token, real in zip(ids, mask, strict=True):
        keep.append(not (real and previous is not None and token != previous))
        previous = token if real else previous
    return keep


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_runs_begin_where_a_loop_over_tokens_says(length, reverse, masked):
    random = np.random.default_rng(length)
    ids, mask = random.integers(-1, 2, (40, length)), random.random((40, length)) < (0.7 if masked else 2)
    order = slice(None, None, -1 if reverse else 1)
    expected = [begins_by_hand(i[order], m[order])[order] for i, m in zip(ids, mask, strict=True)]
    tokens = tokens_of(jnp.asarray(ids), jnp.asarray(mask) if masked else None, reverse=reverse)
    np.testing.assert_array_equal(tokens.keep, expected)
    assert (tokens.real is not None) == masked


def test_without_segments_nothing_begins():
    mask = jnp.array([[True, False]])
    assert tokens_of(None, mask).keep is None
    np.testing.assert_array_equal(tokens_of(None, mask).real, mask)


def test_what_a_masked_token_contains_reaches_neither_value_nor_gradient():
    mask = jnp.array([[True, False, True]])
    x = jnp.array([[[1.0], [jnp.nan], [3.0]]])
    tokens = tokens_of(None, mask)
    value, gradient = jax.value_and_grad(lambda x: (only_real(tokens, x)[0] ** 2).sum())(x)
    assert value == 10
    np.testing.assert_array_equal(gradient[0, :, 0], [2, 0, 6])


def test_only_real_passes_none_and_other_kinds_of_arrays():
    count, nothing = only_real(tokens_of(None, jnp.array([[True, False]])), jnp.array([[3, 4]]), None)
    assert count.tolist() == [[3, 0]]
    assert nothing is None
    x = jnp.zeros(2)
    assert only_real(tokens_of(None, None), x)[0] is x


@pytest.mark.parametrize("name", [name for name in CALLS if " " not in name])
def test_vmap_over_one_operand_counts_every_cotangent_once(name):
    """Some outputs do not depend on the mapped operand, the final state on the queries for one."""
    args = operands(name, 2, 5, seed=0)
    random = np.random.default_rng(1)
    everything = tuple(range(len(args)))
    weights = jax.tree.map(lambda x: random.standard_normal((2, *x.shape)), jax.eval_shape(CALLS[name], *args))

    def weighted(y, weights):
        pairs = zip(jax.tree.leaves(y), jax.tree.leaves(weights), strict=True)
        return sum((jnp.real(x) * w).sum() for x, w in pairs)

    @jax.jit
    def alone(weights, *args):
        return jax.grad(lambda *a: weighted(CALLS[name](*a), weights), everything)(*args)

    for mapped in everything:
        axes = [0 if i == mapped else None for i in everything]
        stacked = tuple(jnp.stack([x, 0.5 * x]) if i == mapped else x for i, x in enumerate(args))
        have = jax.jit(jax.grad(lambda *a, axes=axes: weighted(jax.vmap(CALLS[name], axes)(*a), weights), everything))
        each = [
            alone(
                jax.tree.map(lambda w, k=k: w[k], weights), *(x[k] if i == mapped else x for i, x in enumerate(stacked))
            )
            for k in range(2)
        ]
        for i, x, *want in zip(everything, have(*stacked), *each, strict=True):
            y = np.stack(want) if i == mapped else want[0] + want[1]
            assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(y)
