"""The two-layer attention model: causal, relative, and its measures on attention that is set by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.markov_dynamics.induction_model import (
    InductionModel,
    RelativeAttention,
    induction_mass,
    previous_token_attention,
)


@pytest.fixture(scope="module")
def weights_and_output():
    attention = RelativeAttention(width=6, heads=2, length=9)
    x = jax.random.normal(jax.random.key(0), (2, 7, 6))
    variables = jax.jit(attention.init)(jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: 30 * leaf, variables)  # initial weights are nearly uniform
    return attention, variables, x, jax.jit(attention.apply)(variables, x)


def test_attention_is_the_formula_written_out(weights_and_output):
    _, variables, x, (out, weights) = weights_and_output
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = np.asarray(x, np.float64)
    for b, h, i in [(0, 0, 0), (1, 1, 6), (0, 1, 3)]:
        q = x[b, i] @ p["query"]["kernel"][:, h]
        logits = [q @ (x[b, j] @ p["key"]["kernel"][:, h] + p["relative"][i - j, h]) / 3**0.5 for j in range(i + 1)]
        expected = np.exp(logits - np.max(logits))
        np.testing.assert_allclose(weights[b, h, i, : i + 1], expected / expected.sum(), rtol=1e-3, atol=1e-6)
    values = np.einsum("bjd,dhe->bjhe", x, p["value"]["kernel"])
    seen = np.einsum("bhij,bjhe->bihe", np.asarray(weights), values)
    np.testing.assert_allclose(out, np.einsum("bihe,hed->bid", seen, p["out"]["kernel"]), rtol=1e-3, atol=1e-3)


def test_no_position_sees_a_later_one(weights_and_output):
    _, _, _, (_, weights) = weights_and_output
    assert not np.triu(np.asarray(weights), 1).any()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


def test_the_number_of_parameters_is_that_of_the_description():
    model = InductionModel(alphabet=3, length=11, width=8, heads=(2, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
    # Embedding and head; four square matrices and the relative positions per layer; three norms with biases.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2 * 3 * 8 + 2 * (4 * 8**2 + 11 * 8) + 3 * 16


def test_the_best_head_counts_for_the_previous_token():
    before, itself = jnp.eye(4, k=-1).at[0, 0].set(1), jnp.eye(4)
    weights = jnp.stack([itself, 0.5 * before + 0.5 * itself])[None]
    assert float(previous_token_attention(weights)) == pytest.approx(0.5)


def test_induction_mass_by_enumeration():
    random = np.random.default_rng(0)
    symbols = random.integers(0, 3, (4, 9))
    weights = np.tril(random.random((4, 9, 9)))
    weights /= weights.sum(axis=-1, keepdims=True)
    masses = []
    for b in range(4):
        for i in range(9):
            targets = [j for j in range(1, i + 1) if symbols[b, j - 1] == symbols[b, i]]
            if targets:
                masses.append(weights[b, i, targets].sum())
    found = induction_mass(jnp.asarray(weights[:, None]), jnp.asarray(symbols))
    assert float(found) == pytest.approx(np.mean(masses), rel=1e-5)
