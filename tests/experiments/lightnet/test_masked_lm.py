"""Masked language modelling: masks, losses, and steps that follow from measured times."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language
from experiments.lightnet import masked_lm


class Guess:
    """Has a guess at masked places only."""

    vocab_size = 256

    def init(self, key, tokens):
        """No parameters."""
        return {}

    def apply(self, params, tokens):
        """Where the mask is, byte 7 is exp(1) times as likely as each other one; elsewhere all are alike."""
        guess = jnp.zeros((*tokens.shape, 256)).at[..., 7].set(1.0)
        return jnp.where((tokens == 256)[..., None], guess, 0.0)


def test_only_hidden_bytes_count_and_they_are_replaced_by_the_mask():
    tokens = np.array([[7, 1, 2, 7], [3, 7, 4, 5]])
    hidden = np.array([[True, False, True, False], [False, True, False, False]])
    task = masked_lm.masked_task(Guess(), {"tokens": tokens, "hidden": hidden}, 0.15, 2)
    assert task.evaluate is not None
    partition = np.log(255 + np.e)
    assert task.evaluate({})["held_out"] == pytest.approx((3 * partition - 2) / 3, rel=1e-6)


def test_masks_are_drawn_anew_at_every_step_at_the_rate():
    tokens = jnp.full((64, 256), 3)
    task = masked_lm.masked_task(Guess(), masked_lm.with_masks(np.asarray(tokens), 0.15, 0), 0.15, 64)
    found = [task.loss({}, {"tokens": tokens}, jax.random.key(i)) for i in range(3)]
    counts = [int(loss.weight) for loss in found]
    assert len(set(counts)) == 3
    assert all(abs(count - 0.15 * tokens.size) < 5 * np.sqrt(0.15 * 0.85 * tokens.size) for count in counts)
    assert float(found[0].value) == pytest.approx(np.log(255 + np.e), rel=1e-6)


def test_steps_fill_the_same_time():
    config = masked_lm.PRESETS["cpu"]
    times = dict(zip(config.models, config.milliseconds, strict=True))
    for name, steps in config.steps.items():
        assert steps * times[name] == pytest.approx(1e3 * config.budget, abs=times[name] / 2)
    with pytest.raises(ValueError, match="milliseconds: got 1, expected one for each"):
        replace(config, milliseconds=(3.0,))


def test_four_scans_are_refused_for_text():
    with pytest.raises(ValueError, match="models: got multiplicative-4 with none, but multiplicative-4 scans two axes"):
        replace(masked_lm.PRESETS["smoke"], models=("multiplicative-4+none",))


@pytest.mark.slow
def test_models_have_equally_many_parameters_and_see_both_sides():
    config = masked_lm.PRESETS["cpu"]
    models = masked_lm.models_of(config)
    counts = [language.count_parameters(model) for model, _ in models.values()]
    assert max(counts) < 1.01 * min(counts)
    assert models[masked_lm.LIGHTNET][1] == config.model.hidden
    assert models[masked_lm.TWO_SCANS][0].backbone.mixer.keywords["num_heads"] == config.model.num_heads


@pytest.mark.slow
@pytest.mark.exhaustive
def test_smoke_repeats_bit_for_bit(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (masked_lm.run(masked_lm.PRESETS["smoke"], folder) for folder in folders)
    assert first.tables == second.tables and np.isfinite(first.tables["losses"]["loss"]).all()
