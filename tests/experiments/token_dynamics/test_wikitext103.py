"""The published setting of the scenario table: its recipe and size, and two updates of it from the files."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.sources import wikitext
from experiments.token_dynamics import wikitext103
from experiments.token_dynamics.scenarios import VARIANTS
from experiments.token_dynamics.text_models import build
from experiments.token_dynamics.wikitext103 import CLAIMS, PRESETS, VOCABULARY, encoded
from experiments.training.optimizer import make_schedule
from tests.experiments.sources.made_up_wikitext import write_tokenizer, write_wikitext

PAPER = PRESETS["paper"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The published config on generated files."""
    monkeypatch.setattr(wikitext, "WORDS", write_wikitext(tmp_path / "text", articles=2))
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    return replace(PAPER, text_dir=str(tmp_path / "text"), tokenizer=str(tokenizer))


def test_the_recipe_is_the_published_one_but_that_the_rate_falls_to_zero():
    train, optimizer = PAPER.train, PAPER.train.optimizer
    assert (train.steps, train.batch_size, PAPER.length, VOCABULARY) == (22_500, 128, 1024, 50_264)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.999, 0.25, 1.0)
    rate = make_schedule(optimizer, train.steps)
    np.testing.assert_allclose([rate(s) for s in (0, 225, 22_500)], [0, 1.5e-3, 0], atol=1e-9)


@pytest.mark.slow
def test_the_size_is_that_of_mamba_130m():
    model = build(PAPER.size, VOCABULARY, scan_layers=PAPER.scan_layers, **VARIANTS["positive"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 129_135_360 - 16 * 768


def test_rows_hold_the_text(config, monkeypatch):
    from tokenizers import Tokenizer

    parts, text = wikitext.read_wikitext(config.text_dir), wikitext.read_gpt2_tokenizer(config.tokenizer)
    tokenizer = Tokenizer.from_str(text)
    ids = [i for document in parts["train"].documents for i in tokenizer.encode(document).ids]
    rows = encoded(parts["train"], text, 50)["tokens"]
    assert rows.shape == ((len(ids) - 1) // 50, 51)
    np.testing.assert_array_equal(np.append(rows[:, :-1].ravel(), rows[-1, -1]), ids[: rows[:, 1:].size + 1])
    monkeypatch.setattr(wikitext103, "_AT_ONCE", 2)
    np.testing.assert_array_equal(encoded(parts["train"], text, 50)["tokens"], rows)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_published_setting_at_one_block(config, tmp_path):
    shortened = replace(config.train, steps=2, batch_size=2, device_batch=1, eval_every=2)
    size = replace(config.size, layers=1)
    config = replace(config, seeds=(4,), variants=("positive",), size=size, length=128, train=shortened)
    result = wikitext103.run(config, tmp_path)
    assert result.measured == {}
    table = result.tables["losses"]
    assert table["part"] == ["valid", "test"] and max(table["perplexity"]) < VOCABULARY
    np.testing.assert_allclose(np.exp(table["nats per token"]), table["perplexity"])
    # As good as the uniform distribution before the first update, or nearly.
    assert result.series["valid"]["positive"][0, 0] == pytest.approx(np.log(VOCABULARY), rel=0.1)
    assert set(result.data) == {f"WikiText-103, {part}" for part in ("train", "valid", "test")} | {"tokenizer"}
    wikitext103.plot(SimpleNamespace(series=result.series))


def test_the_claim_is_the_smaller_of_two_differences_on_the_test_part():
    rows = [("positive", 3.0, 3.0), ("mixed", 3.1, 2.9), ("negative", 3.3, 3.5), ("free", 1.0, 1.0)]
    table = {
        "variant": [name for name, *_ in rows for _ in range(4)],
        "part": ["valid", "test"] * 8,
        "nats per token": [value for _, first, second in rows for value in (9.0, first, 9.0, second)],
    }
    (claim,) = CLAIMS
    np.testing.assert_allclose(wikitext103._measured(table)[claim.id], [0.1, -0.1])
    assert wikitext103._measured({"variant": ["mixed"], "part": ["test"], "nats per token": [3.0]}) == {}


def test_variants_that_are_none_are_refused():
    with pytest.raises(ValueError, match="variants: unknown variant 'zero'"):
        replace(PAPER, variants=("zero",))
