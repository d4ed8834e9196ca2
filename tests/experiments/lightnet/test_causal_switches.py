"""The switches: what they build, how the best are combined, and what claims are computed from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language
from experiments.lightnet import causal_switches
from experiments.lightnet.causal_switches import phantom_effect
from experiments.lightnet.switches import BASE, VARIANTS, combined, described


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_variant_has_equally_many_parameters():
    size = causal_switches.PRESETS["cpu"].model
    for variant in VARIANTS.values():
        assert language.count_parameters(described(size, variant).build()) == pytest.approx(111_624, rel=0.005)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_switches_without_parameters_of_their_own_change_the_output():
    names = (BASE, "phantom logit 0", "SiLU gate after the norm", "LRPE, low frequencies", "LRPE, geometric")
    size = causal_switches.PRESETS["smoke"].model
    tokens, parameters, outputs = jnp.arange(9)[None], None, {}
    for name in names:
        model = described(size, VARIANTS[name]).build()
        parameters = parameters or jax.jit(model.init)(jax.random.key(0), tokens)
        larger = jax.tree.map(lambda leaf: 5 * leaf, parameters)  # so that the logits of keys differ
        outputs[name] = np.asarray(jax.jit(model.apply)(larger, tokens))
    for i, name in enumerate(names):
        assert not any(np.allclose(outputs[name], outputs[other], rtol=1e-4) for other in names[i + 1 :]), name


def test_the_combination_takes_the_best_of_each_switch_and_keeps_lightnets_own_where_nothing_is_better():
    losses = dict.fromkeys(VARIANTS, 3.0) | {BASE: 2.0, "multiplicative": 1.0}
    assert combined(VARIANTS, losses) == VARIANTS[BASE]
    better = {"scalar decay, keys not normalised": 1.9, "vector decay": 1.95, "short convolution of 4": 1.5}
    best = combined(VARIANTS, losses | better | {"TPE of rank 16": 1.9, "LRPE, geometric": 1.99})
    assert (best.mixer, best.positions) == ("lightnet", "both")
    assert best.mixer_options == {"decay": "scalar", "normalised": False, "conv_width": 4}
    assert best.position_options == {"input_positions": {"rank": 16}, "relative": {"kind": "geometric"}}
    assert VARIANTS[BASE].mixer_options == {}


@pytest.mark.slow
def test_the_phantoms_effect_is_the_share_of_its_weight():
    # Without values the weights alone decide: one channel, so output' = output * total / (total + 1).
    from experiments.training.update import random_stream

    q, logits, v = jax.random.normal(random_stream(3, "phantom"), (3, 64, 9, 1, 1))
    total = np.cumsum(np.exp(np.asarray(logits, np.float64)), axis=1)
    weighted = np.cumsum(np.exp(np.asarray(logits, np.float64)) * np.asarray(v), axis=1) * np.asarray(q)
    without, change = weighted / total, weighted / total - weighted / (total + 1)
    expected = [np.linalg.norm(change[:, t]) / np.linalg.norm(without[:, t]) for t in (0, 8)]
    np.testing.assert_allclose(phantom_effect(3, (0, 8), width=1), expected, rtol=1e-4)


def test_claims_compare_the_models_that_they_name():
    names = list(dict.fromkeys(name for pair in causal_switches.DIFFERENCES.values() for name in pair))
    losses = {name: [2.0**i, 2.0**i + 1] for i, name in enumerate(names)}
    measured = causal_switches._measured(causal_switches.PRESETS["cpu"], losses, [np.arange(4.0)] * 2)
    assert set(measured) == {claim.id for claim in causal_switches.CLAIMS}
    for claim, (first, second) in causal_switches.DIFFERENCES.items():
        difference = losses[first][0] - losses[second][0]
        scale = losses["multiplicative, no positions"][0] if claim.endswith("rope-no-gain") else 1.0
        assert measured[claim][0] == pytest.approx(difference / scale)
    assert measured["lightnet/phantom-logit"] == [3.0, 3.0]
