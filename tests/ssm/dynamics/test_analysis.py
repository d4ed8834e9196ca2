"""Layer by layer: what is taken out of a model is what its layers compute with, and the rates are their definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.backbone import Backbone, CausalLM
from lightnet.mixers import LightNetAttention
from ssm import Architecture, Mamba, Mamba2, RefinedMamba, mamba_lm
from ssm.dynamics import analysis
from tests.ssm.draws import randomised

WIDTH, LENGTH, VOCABULARY = 5, 7, 11
TOKENS = np.random.default_rng(2).integers(0, VOCABULARY, (2, LENGTH))
# Without the gate, what a block adds is its last kernel times the recurrence's output and the skip.
UNGATED = RefinedMamba(WIDTH, state_size=3, dt_rank=2, gate=False)


def build(mixer):
    model = mamba_lm(Architecture(mixer, vocab_size=VOCABULARY, num_layers=2))
    return model, {"params": jax.tree.map(jnp.asarray, randomised(model, TOKENS))}


def activations_of(model, variables):
    return jax.jit(partial(analysis.activations, model))(variables, TOKENS)


def by_tokens(x, steps, A, B, C):
    """The recurrence's output for one sequence (L, E) as a sum over pairs of tokens."""
    y = np.zeros_like(x)
    for i in range(len(x)):
        for j in range(i + 1):
            decay = np.exp(steps[j + 1 : i + 1].sum(axis=0)[:, None] * A)
            y[i] += (C[i] * B[j] * decay).sum(axis=1) * steps[j] * x[j]
    return y


def test_projections_are_rows_of_the_kernel():
    model, variables = build(Mamba(WIDTH, state_size=3, dt_rank=2))
    for i, (s_b, s_c) in enumerate(analysis.projections(model, variables)):
        kernel = variables["params"]["backbone"][f"blocks_{i}"]["mix"]["x_proj"]["kernel"]
        np.testing.assert_array_equal(s_b, kernel[:, 2:5].T)
        np.testing.assert_array_equal(s_c, kernel[:, 5:].T)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    for pair, rounded in zip(analysis.projections(model, variables), analysis.projections(model, half), strict=True):
        assert rounded.s_b.dtype == np.float32 and analysis.layer_spectrum(*rounded).inertia == (3, 3)
        np.testing.assert_allclose(rounded.s_c, pair.s_c, rtol=2**-8)


@pytest.mark.slow
def test_projections_are_those_that_act():
    model, variables = build(RefinedMamba(WIDTH, state_size=3, dt_rank=2, scenario="negative"))
    for s_b, s_c in analysis.projections(model, variables):
        np.testing.assert_array_equal(np.diag(s_c), 1)
        factors = np.diag(s_b)
        assert (factors < -0.7).all()
        np.testing.assert_allclose(s_b, factors[:, None] * s_c, rtol=1e-6)
    found = analysis.analyse(model, variables, TOKENS)
    assert [layer.spectrum.inertia for layer in found.layers] == [(0, 3)] * 2
    assert all((layer.spectrum.eigenvalues.real < 0).all() for layer in found.layers)


def test_activations_are_what_the_layers_compute_with():
    with jax.enable_x64(True):
        model, variables = build(UNGATED)
        found = activations_of(model, variables)
        pairs = analysis.projections(model, variables)
        embedded = variables["params"]["embedding"][TOKENS]
        np.testing.assert_allclose(found.residual[0], np.linalg.norm(embedded, axis=-1), rtol=1e-12)
        for i, (layer, (s_b, s_c)) in enumerate(zip(found.layers, pairs, strict=True)):
            mix = jax.tree.map(np.asarray, variables["params"]["backbone"][f"blocks_{i}"]["mix"])
            x = np.asarray(layer.tokens)
            np.testing.assert_allclose(layer.B, x @ s_b.T, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(layer.C, x @ s_c.T, rtol=1e-9, atol=1e-12)
            scores = x @ mix["x_proj"]["kernel"][:, :2] @ mix["dt_proj"]["kernel"]
            np.testing.assert_allclose(layer.scores, scores, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(layer.steps, np.log1p(np.exp(scores + mix["dt_bias"])), rtol=1e-9)
            y = np.stack([by_tokens(*row, np.asarray(layer.A), *bc) for *row, bc in _rows(layer)])
            added = (y + mix["D"] * x) @ mix["out_proj"]["kernel"]
            np.testing.assert_allclose(layer.update, np.linalg.norm(added, axis=-1), rtol=1e-9)
            rates = (x * y).sum(axis=-1) / np.square(x).sum(axis=-1)
            np.testing.assert_allclose(analysis.growth_rates(layer), rates, rtol=1e-9, atol=1e-12)
            for channel in (0, 7):
                attention = np.asarray(analysis.layer_attention(layer, channel))
                assert not np.triu(attention, 1).any()
                np.testing.assert_allclose(
                    np.einsum("blj,bj->bl", attention, x[..., channel]), y[..., channel], rtol=1e-9, atol=1e-12
                )


def _rows(layer):
    for x, steps, B, C in zip(layer.tokens, layer.steps, layer.B, layer.C, strict=True):
        yield np.asarray(x), np.asarray(steps), (np.asarray(B), np.asarray(C))


@pytest.mark.slow
def test_the_residual_stream_ends_where_the_logits_begin():
    with jax.enable_x64(True):
        model, variables = build(UNGATED)
        params = variables["params"]
        # Without the second block's last kernel the stream stays as it is there.
        last = params["backbone"]["blocks_1"]["mix"]["out_proj"]
        last["kernel"] = jnp.zeros_like(last["kernel"])
        found = activations_of(model, variables)
        np.testing.assert_array_equal(found.residual[1], found.residual[2])
        assert not np.allclose(found.residual[0], found.residual[1], rtol=1e-2)
        assert found.residual.shape == (3, *TOKENS.shape) and not found.layers[1].update.any()


def test_rates_in_one_dimension():
    """Mu times the sum of step_j x_j^2 up to the token, with the forgetting between; a token of zeros has none."""
    random, mu, a, g = np.random.default_rng(0), -0.7, 1.3, 0.0
    x, steps = random.standard_normal(LENGTH), random.exponential(size=LENGTH)
    x[3] = 0
    with jax.enable_x64(True):
        one = [value.reshape(1, LENGTH, 1) for value in (x, steps)]
        made = (one[0], np.array([[-a]]), mu / 2 * one[0], 2 * one[0])  # B is mu x / 2, and C is 2 x
        rates = analysis.growth_rates(analysis.LayerActivations(one[1], one[1], x[None], *made))[0]
    for i in range(LENGTH):
        g = np.exp(-a * steps[i]) * g + x[i] ** 2 * steps[i]
        assert rates[i] == pytest.approx(mu * g if x[i] else 0, rel=1e-12)


@pytest.mark.slow
def test_numbers_are_of_the_activations_and_of_the_weights():
    model, variables = build(Mamba(WIDTH, state_size=3, dt_rank=2))
    recomputing = model.clone(backbone=model.backbone.clone(remat="nothing_saveable"))
    found, inside = analysis.analyse(recomputing, variables, TOKENS), activations_of(model, variables)
    np.testing.assert_allclose(found.residual, inside.residual, rtol=1e-5)
    for layer, raw, (s_b, s_c) in zip(found.layers, inside.layers, analysis.projections(model, variables), strict=True):
        np.testing.assert_allclose(layer.step_quantiles[1], np.median(raw.steps), rtol=1e-5)
        assert layer.positive_scores == pytest.approx((np.asarray(raw.scores) > 0).mean(), abs=1e-6)
        np.testing.assert_allclose(layer.importance, np.asarray(raw.scores).mean(axis=-1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.growth, analysis.growth_rates(raw), rtol=1e-4, atol=1e-5)
        M = s_c.astype(float).T @ s_b.astype(float)
        expected = np.linalg.eigvals(M)
        largest = expected[np.argsort(-np.abs(expected))][:3]
        assert sorted(np.abs(layer.spectrum.eigenvalues)) == pytest.approx(sorted(np.abs(largest)))
        symmetric = np.linalg.eigvalsh((M + M.T) / 2)
        assert layer.spectrum.inertia == ((symmetric > 1e-9).sum(), (symmetric < -1e-9).sum()) == (3, 3)


@pytest.mark.slow
def test_mamba2_has_steps_and_norms_but_no_matrix():
    mixer = Mamba2(width=6, state_size=4, head_size=3, dt_limit=(0.4, 0.8))
    model, variables = build(mixer)
    found = analysis.analyse(model, variables, TOKENS)
    assert found.residual.shape == (3, *TOKENS.shape)
    for layer in found.layers:
        assert layer.spectrum is None and layer.growth is None and layer.importance.shape == TOKENS.shape
        assert layer.step_quantiles.min() == pytest.approx(0.4) and layer.step_quantiles.max() == pytest.approx(0.8)
    with pytest.raises(ValueError, match="model: got one of Mamba2, expected one of Mamba, whose tokens"):
        analysis.projections(model, variables)
    with pytest.raises(ValueError, match="layer: got one of Mamba-2"):
        analysis.growth_rates(activations_of(model, variables).layers[0])


def test_other_mixers_are_refused():
    model = CausalLM(Backbone(mixer=partial(LightNetAttention, num_heads=2), num_layers=1, width=4), vocab_size=3)
    for function in (analysis.projections, partial(analysis.analyse, tokens=TOKENS)):
        with pytest.raises(ValueError, match="model: got one of LightNetAttention, expected one of Mamba"):
            function(model, {})
