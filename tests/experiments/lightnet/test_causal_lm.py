"""Causal language modelling: sizes, presets and claims."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import language
from experiments.language import BYTES
from experiments.language_models import load
from experiments.lightnet import causal_lm


@pytest.mark.slow
@pytest.mark.exhaustive
def test_all_models_of_the_cpu_preset_have_equally_many_parameters_within_one_per_cent():
    config = causal_lm.PRESETS["cpu"]
    models = causal_lm.described(config, language.Vocabulary(None, np.ones(BYTES, np.float32)))
    assert models["lightnet+both"].hidden == config.model.hidden
    counts = [language.count_parameters(model.build()) for model in models.values()]
    assert max(counts) < 1.01 * min(counts)
    assert len({model.hidden for model in models.values()}) > 1


def test_claims_are_differences_with_the_right_sign():
    # Two seeds; every claim of the file by hand.
    table: dict[str, list] = {"tokens": [], "model": [], "seed": [], "loss": []}
    losses = dict(zip(causal_lm.ALL, (2.4, 2.2, 2.0, 2.03, 1.9, 1.7, 1.6, 1.8), strict=True))
    for seed in (0, 1):
        for name, loss in losses.items():
            causal_lm._append(table, BYTES, name, seed, loss + 0.1 * seed)
            causal_lm._append(table, 1024, name, seed, 2 * loss)
    config = replace(causal_lm.PRESETS["cpu"], seeds=(0, 1))
    measured = causal_lm._measured(config, table)
    assert set(measured) == {claim.id for claim in causal_lm.CLAIMS}
    np.testing.assert_allclose(measured["lightnet/R7-bpe-against-mamba"], [0.4 / 3.6, 0.4 / 3.6])
    np.testing.assert_allclose(measured["lightnet/causal-matches-mamba"], [0.2 / 1.8, 0.2 / 1.9])
    np.testing.assert_allclose(measured["lightnet/R7-causal-positions"], [0.2, 0.2])
    np.testing.assert_allclose(measured["lightnet/R7-against-other-mixers"], [0.0106, 0.0126])
    np.testing.assert_allclose(measured["lightnet/review-plain-linear-attention"], [-0.03, -0.03])
    kept = [i for i, name in enumerate(table["model"]) if name in ("lightnet+both", "mamba+none", "linear+both")]
    fewer = causal_lm._measured(config, {column: [values[i] for i in kept] for column, values in table.items()})
    assert set(fewer) == {
        "lightnet/causal-matches-mamba",
        "lightnet/review-plain-linear-attention",
        "lightnet/R7-bpe-against-mamba",
        "lightnet/R7-bpe-against-linear",
    }


@pytest.mark.parametrize("field", ["models", "bpe_models"])
@pytest.mark.parametrize("model", ["lightnet", "multiplicative-2+both"])
def test_models_that_are_none_are_refused_before_anything_is_trained(field, model):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        replace(causal_lm.PRESETS["cpu"], **{field: (model,)})


@pytest.mark.slow
def test_learned_positions_are_as_many_as_a_row_has_tokens():
    config = replace(causal_lm.PRESETS["smoke"], models=("softmax+learned", "softmax+none"))
    models = causal_lm.described(config, language.Vocabulary(None, np.ones(BYTES, np.float32)))
    learned, none = (
        language.count_parameters(replace(model, hidden=16).build())
        for model in (models["softmax+learned"], models["softmax+none"])
    )
    assert learned - none == config.text.length * config.model.width


@pytest.mark.slow
@pytest.mark.exhaustive
def test_with_both_encodings_the_loss_is_lower_than_without(tmp_path):
    config = causal_lm.PRESETS["cpu"]
    short = replace(
        config,
        seeds=(7,),
        vocabularies=(BYTES,),
        models=("lightnet+none", "lightnet+both"),
        text=replace(config.text, every=40, length=64),
        model=replace(config.model, width=32, hidden=64),
        train=replace(config.train, steps=150, eval_every=150),
    )
    none, both = causal_lm.run(short, tmp_path).tables["losses"]["loss"]
    assert both < none


@pytest.mark.slow
def test_smoke_leaves_models_that_can_be_loaded_with_their_tokenizer(tmp_path):
    result = causal_lm.run(causal_lm.PRESETS["smoke"], tmp_path)
    loss = result.tables["losses"]["loss"]
    assert np.isfinite(loss).all() and not result.measured
    trained = load(tmp_path)
    assert trained.language_model.vocab_size == 300 and trained.language_model.tokenizer is not None


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_gpu_preset_at_less_depth(tmp_path):
    config = causal_lm.PRESETS["gpu"]
    short = replace(
        config,
        seeds=(0,),
        bpe_models=config.bpe_models[:1],
        text=replace(config.text, every=30),
        model=replace(config.model, num_layers=1),
        train=replace(config.train, steps=2, batch_size=2, eval_every=2),
    )
    result = causal_lm.run(short, tmp_path)
    assert np.isfinite(result.tables["losses"]["loss"]).all()
    assert result.series["16384, lightnet+both"]["loss"].shape == (1, 2)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_gpu_preset_has_the_size_that_was_asked_for():
    config = causal_lm.PRESETS["gpu"]
    models = causal_lm.described(config, language.Vocabulary("{}", np.ones(16_384, np.float32)))
    counts = [language.count_parameters(replace(model, tokenizer=None).build()) for model in models.values()]
    assert dict(zip(models, counts, strict=True)) == {
        "lightnet+both": 28_325_896,
        "linear+both": 28_325_896,
        "softmax+lrpe": 28_326_400,
        "multiplicative+both": 28_325_896,
        "multiplicative+none": 28_326_400,
    }
