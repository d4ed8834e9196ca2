"""Trained models: what is counted, of which layers, and another model beside them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.token_dynamics import trained_models

SMOKE = trained_models.PRESETS["smoke"]


def test_claims_count_layers_of_a_seed():
    layers = {"seed": [3, 3, 3, 3, 5, 5, 5, 5], "updates": [0, 0, 9, 9] * 2}
    layers["positive"], layers["negative"] = [3, 3, 3, 2, 3, 3, 3, 3], [3] * 8
    layers["label"] = ["convergent", "mixed", "mixed", "mixed", "mixed", "mixed", "divergent", "mixed"]
    drawn = {"complex": np.array([0.7, 0.78]), "positive real part": np.array([0.51, 0.4])}
    config = replace(SMOKE, seeds=(3, 5))
    measured = trained_models._measured(config, layers, drawn)
    assert measured["token_dynamics/inertia-always-mixed"].tolist() == [0.75, 1.0]
    assert measured["token_dynamics/pretrained-scenarios"].tolist() == [1.0, 0.5]
    assert "token_dynamics/random-spectra-complex" not in measured  # it is about sixteen states
    sixteen = replace(config, size=replace(config.size, width=16, states=16))
    found = trained_models._measured(sixteen, layers, drawn)
    assert set(found) == {claim.id for claim in trained_models.CLAIMS}
    assert found["token_dynamics/random-spectra-complex"].tolist() == pytest.approx([0.07, 0.1])


def test_layers_are_drawn_from_the_initial_values_of_the_mixer():
    """Independent entries with the same bound; the draws of a seed do not depend on the others."""
    from ssm import Mamba

    mixer = Mamba(SMOKE.size.width, state_size=SMOKE.size.states)
    params = jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 2, SMOKE.size.width)))["params"]
    bound = (2 * SMOKE.size.width) ** -0.5
    kernel = np.abs(np.asarray(params["x_proj"]["kernel"].value))
    assert 0.9 * bound < kernel.max() <= bound
    both, one = (trained_models._drawn(replace(SMOKE, seeds=seeds)) for seeds in ((0, 4), (4,)))
    assert both["complex"][1:] == one["complex"] and both["complex"][0] != both["complex"][1]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_analyses_every_state_and_another_model(tmp_path):
    from ssm import Architecture, Mamba2, mamba_lm, save_pretrained

    mixer = Mamba2(width=8, state_size=4, head_size=4)
    model = mamba_lm(Architecture(mixer, vocab_size=256, num_layers=3))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    save_pretrained(tmp_path / "other", model, variables)
    (tmp_path / "run").mkdir()
    result = trained_models.run(replace(SMOKE, checkpoint=str(tmp_path / "other")), tmp_path / "run")
    layers, norms = result.tables["layers"], result.tables["norms"]
    assert layers["updates"] == [0, 0, 2, 2, 4, 4] and layers["layer"] == [0, 1] * 3
    assert set(layers["positive"]) == set(layers["negative"]) == {3}
    assert norms["depth"] == [0, 1, 2] * 3 and np.isfinite(norms["norm"]).all()
    assert result.series["eigenvalues"]["trained"].shape == (1, 2, 3)
    assert not np.allclose(*result.series["eigenvalues"].values())
    other = result.tables["checkpoint"]
    assert other["layer"] == [0, 1, 2] and other["scenario"] == [""] * 3 and min(other["step 5 %"]) > 0
    assert "checkpoint" in result.data


def test_a_model_without_state_space_mixers_is_refused(tmp_path, monkeypatch):
    from experiments import language_models

    described = language_models.LanguageModel(256, num_layers=1, width=8, num_heads=2, hidden=8)
    trained = language_models.Trained(described, described.build(), {})
    monkeypatch.setattr(language_models, "load", lambda path: trained)
    with pytest.raises(UserError, match="checkpoint: model: got one of LightNetAttention"):
        trained_models._other(replace(SMOKE, checkpoint=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_gpu_preset_at_less_depth(tmp_path, monkeypatch):
    from experiments.sources import text
    from experiments.token_dynamics.text_models import recipe

    config, library = trained_models.PRESETS["gpu"], text.standard_library()
    shorter = text.Corpus(library.name, tuple(sorted(library.documents, key=len)[300:340]))
    monkeypatch.setattr(text, "standard_library", lambda: shorter)
    short = replace(
        config,
        seeds=(0,),
        text=replace(config.text, analysed=2),
        size=replace(config.size, layers=1),
        train=replace(recipe(2, 1, batch_size=2), precision=config.train.precision),
    )
    result = trained_models.run(short, tmp_path)
    layers = result.tables["layers"]
    assert layers["updates"] == [0, 2] and layers["scenario"] == ["mixed"] * 2
    assert np.isfinite(result.tables["norms"]["nats per byte"]).all()
    assert set(result.measured) == {claim.id for claim in trained_models.CLAIMS}


def test_the_gpu_preset_has_the_size_that_was_asked_for():
    from experiments.language import count_parameters
    from experiments.token_dynamics.text_models import build

    config = trained_models.PRESETS["gpu"]
    model = build(config.size, config.text.vocabulary)
    assert count_parameters(model) == 11_669_376
