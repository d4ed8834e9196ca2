"""The published setting of masked language modelling: its recipe and sizes, what is hidden, and two updates of it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.equal_size import count_parameters
from experiments.lightnet import wikitext103_masked
from experiments.lightnet.wikitext103_masked import CLAIMS, LIGHTNET, PRESETS, TWO_SCANS, Config, corrupted, models_of
from experiments.sources import wikitext
from experiments.training.optimizer import make_schedule
from tests.experiments.sources.made_up_wikitext import write_tokenizer, write_wikitext

PAPER = PRESETS["paper"]


def test_the_recipe_is_the_published_one():
    train, optimizer = PAPER.train, PAPER.train.optimizer
    assert (train.steps, train.batch_size, PAPER.text.length, train.precision) == (50_000, 512, 512, "bfloat16")
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.98, 0.2, 1.0)
    assert (PAPER.dropout, PAPER.rate, PAPER.num_layers) == (0.1, 0.15, 12)
    rate = make_schedule(optimizer, train.steps)
    np.testing.assert_allclose([rate(s) for s in (0, 3000, 26_500, 50_000)], [0, 5e-4, 2.5e-4, 0], atol=1e-10)


@pytest.mark.slow
def test_what_is_hidden():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 1000, (40, 1000)))
    read, told = map(np.asarray, corrupted(tokens, jax.random.key(0), 0.15, 1000))
    np.testing.assert_array_equal(read[~told], tokens[~told])
    masked, kept = (read == 1000)[told], (read == tokens)[told]
    # Five standard deviations; one of a thousand tokens is drawn as it was.
    for share, found, draws in ((0.15, told, told.size), (0.8, masked, told.sum()), (0.1001, kept, told.sum())):
        assert found.mean() == pytest.approx(share, abs=5 * (share * (1 - share) / draws) ** 0.5)
    drawn = read[told & (read != 1000) & (read != tokens)]
    assert drawn.min() < 20 and 980 < drawn.max() < 1000


@pytest.mark.slow
@pytest.mark.exhaustive
def test_models_have_the_parameters_of_lightnet_to_within_a_hundredth():
    sizes = {
        name: count_parameters(model, np.zeros((1, 8), np.int32)) for name, model in models_of(PAPER, 50_257).items()
    }
    assert tuple(sizes) == PAPER.models
    assert sizes[LIGHTNET] == 125_387_865
    assert max(abs(size / sizes[LIGHTNET] - 1) for size in sizes.values()) < 0.001


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_published_setting_at_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr(wikitext, "WORDS", write_wikitext(tmp_path / "text"))
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    text = replace(PAPER.text, text_dir=str(tmp_path / "text"), tokenizer=str(tokenizer))
    shortened = replace(PAPER.train, steps=2, batch_size=2, device_batch=1, eval_every=2)
    config = replace(PAPER, seeds=(0,), num_layers=1, models=(LIGHTNET, TWO_SCANS), text=text, train=shortened)
    result = wikitext103_masked.run(config, tmp_path)
    assert set(result.measured) == {claim.id for claim in CLAIMS}
    table = result.tables["losses"]
    assert table["model"] == [LIGHTNET, LIGHTNET, TWO_SCANS, TWO_SCANS] and table["part"] == ["valid", "test"] * 2
    np.testing.assert_allclose(np.exp(table["nats"]), table["perplexity"])
    assert result.series[LIGHTNET]["step"].tolist() == [0, 2]
    rows = (tmp_path / "training" / f"{LIGHTNET}-seed0" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if row["split"] == "train"]
    assert losses[0] == pytest.approx(np.log(50_257), rel=0.1) and losses[1] < losses[0]
    wikitext103_masked.plot(SimpleNamespace(series=result.series))


@pytest.mark.parametrize("change", [{"models": ("other+both",)}, {"rate": 0.0}, {"dropout": 1.0}])
def test_values_out_of_range_are_refused_by_name(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: got"):
        Config(**change)
