"""The setting with a billion parameters: its recipe and sizes, and two updates of it with narrow blocks."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import language
from experiments.lightnet import language_model_1b
from experiments.lightnet.language_model_1b import CLAIMS, LIGHTNET, MAMBA, PRESETS, VOCABULARY, Config, described
from experiments.training.optimizer import make_schedule

PAPER = PRESETS["paper"]


def test_the_recipe_is_the_one_that_is_told():
    train, optimizer = PAPER.train, PAPER.train.optimizer
    assert train.batch_size * PAPER.length == 2**21 and PAPER.scan_layers
    assert train.steps * 2**21 == pytest.approx(100e9, rel=1e-4)
    rate = make_schedule(optimizer, train.steps)
    np.testing.assert_allclose([rate(step) for step in (0, 477, train.steps)], [0, 3e-4, 0], atol=1e-10)


@pytest.mark.slow
def test_models_have_1_3_billion_parameters_to_within_a_thousandth_of_each_other():
    sizes = {name: language.count_parameters(model.build()) for name, model in described(PAPER).items()}
    assert sizes[LIGHTNET] == 1_352_996_872
    assert sizes[MAMBA] == pytest.approx(sizes[LIGHTNET], rel=1e-3)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_with_narrow_blocks(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 400), ("valid", 50)):
        rng.integers(0, VOCABULARY, count).astype("<u2").tofile(tmp_path / f"{part}.bin")
    train = replace(PAPER.train, steps=2, batch_size=2, device_batch=1, eval_every=2)
    config = replace(PAPER, size="44m", num_layers=2, length=16, token_dir=str(tmp_path), train=train)
    result = language_model_1b.run(config, tmp_path / "run")
    assert set(result.measured) == {claim.id for claim in CLAIMS}
    table = result.tables["losses"]
    assert table["model"] == [LIGHTNET, MAMBA]
    np.testing.assert_allclose(table["nats per token"], np.log(VOCABULARY), rtol=0.1)  # nothing can be learned
    assert result.series[LIGHTNET]["step"].tolist() == [0, 2]
    language_model_1b.plot(SimpleNamespace(series=result.series))


def test_the_claim_is_the_relative_difference():
    table = {"model": [LIGHTNET, MAMBA], "nats per token": [2.2, 2.0]}
    (measured,) = language_model_1b._measured(table).values()
    np.testing.assert_allclose(measured, [0.1])
    assert language_model_1b._measured({"model": [LIGHTNET], "nats per token": [2.2]}) == {}


@pytest.mark.parametrize("model", ["multiplicative-2+lrpe", "lightnet", "other+both"])
def test_models_that_are_none_are_refused(model):
    with pytest.raises(ValueError, match="models: got"):
        Config(models=(model,))
