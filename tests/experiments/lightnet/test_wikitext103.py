"""The published setting on WikiText-103: its recipe, sizes and perplexities, and two updates of it from the files."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import language
from experiments.lightnet import wikitext103
from experiments.lightnet.wikitext103 import CLAIMS, LIGHTNET, MAMBA, PRESETS, Config, described, tokens
from experiments.sources import wikitext
from experiments.training.optimizer import make_schedule
from tests.experiments.sources.made_up_wikitext import write_tokenizer, write_wikitext

PAPER = PRESETS["paper"]
GPT2 = language.Vocabulary(None, np.ones(50_257, np.float32))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The published config on generated files."""
    monkeypatch.setattr(wikitext, "WORDS", write_wikitext(tmp_path / "text"))
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    return replace(PAPER, text_dir=str(tmp_path / "text"), tokenizer=str(tokenizer))


def test_the_recipe_is_the_published_one():
    train, optimizer = PAPER.train, PAPER.train.optimizer
    assert (train.steps, train.batch_size, PAPER.length, train.precision) == (50_000, 128, 512, "bfloat16")
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.98, 0.1, 1.0)
    assert PAPER.dropout == 0.1
    rate = make_schedule(optimizer, train.steps)
    np.testing.assert_allclose([rate(s) for s in (0, 2000, 4000, 16_000)], [0, 2.5e-4, 5e-4, 2.5e-4], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_models_have_the_parameters_of_lightnet_to_within_a_hundredth():
    models = described(PAPER, GPT2)
    sizes = {name: language.count_parameters(model.build()) for name, model in models.items()}
    assert sizes[LIGHTNET] == 45_668_872
    assert max(abs(size / sizes[LIGHTNET] - 1) for size in sizes.values()) < 0.001
    assert [model.hidden for model in models.values()] == [1408, 1480, 1408, 1437, 1059]
    assert tuple(models) == PAPER.models


def test_rows_hold_the_text_and_words_are_counted_on_it(config):
    parts = wikitext.read_wikitext(config.text_dir)
    found = tokens(replace(config, length=50), parts)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(found.vocabulary.tokenizer)
    for part, corpus in parts.items():
        text, words = "".join(corpus.documents), wikitext.WORDS[part]
        assert found.bytes_per_word[part] == pytest.approx(len(text.encode()) / words)
        ids = [i for document in corpus.documents for i in tokenizer.encode(document).ids]
        assert found.tokens_per_word[part] == pytest.approx(len(ids) / words)
        rows = found.rows[part]["tokens"]
        assert rows.shape == ((len(ids) - 1) // 50, 51)
        np.testing.assert_array_equal(np.append(rows[:, :-1].ravel(), rows[-1, -1]), ids[: rows[:, 1:].size + 1])
        assert text.startswith(tokenizer.decode(rows[:, :-1].ravel().tolist())[:-4])


@pytest.mark.slow
def test_articles_are_encoded_a_few_at_a_time_as_all_at_once(config, monkeypatch):
    parts = wikitext.read_wikitext(config.text_dir)
    whole = tokens(config, parts).rows
    monkeypatch.setattr(wikitext103, "_AT_ONCE", 2)
    for part, rows in tokens(config, parts).rows.items():
        np.testing.assert_array_equal(rows["tokens"], whole[part]["tokens"])


def test_without_a_tokenizer_one_is_trained_on_the_training_part(config):
    parts = wikitext.read_wikitext(config.text_dir)
    vocabulary = tokens(replace(config, tokenizer="", length=16), parts).vocabulary
    assert 256 < len(vocabulary.lengths) <= 50_257
    from tokenizers import Tokenizer

    text = parts["test"].documents[1]
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_published_setting_at_one_block(config, tmp_path):
    shortened = replace(config.train, steps=2, batch_size=2, device_batch=1, eval_every=2)
    config = replace(config, seeds=(0,), num_layers=1, models=(LIGHTNET, MAMBA), train=shortened)
    result = wikitext103.run(config, tmp_path)
    assert set(result.measured) == {claim.id for claim in CLAIMS}
    table = result.tables["losses"]
    assert table["model"] == [LIGHTNET, LIGHTNET, MAMBA, MAMBA] and table["part"] == ["valid", "test"] * 2
    assert max(table["perplexity per token"]) < 50_257  # the second update has the peak rate
    np.testing.assert_allclose(np.exp(table["nats per word"]), table["perplexity per word"])
    assert result.series[LIGHTNET]["step"].tolist() == [0, 2]
    assert set(result.data) == {f"WikiText-103, {part}" for part in ("train", "valid", "test")} | {"tokenizer"}
    rows = (tmp_path / "training" / f"{LIGHTNET}-seed0" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if row["split"] == "train"]
    assert losses == pytest.approx([np.log(50_257)] * 2, rel=0.1)  # the first update has rate 0
    wikitext103.plot(SimpleNamespace(series=result.series))


def test_the_claim_is_the_relative_difference_on_the_test_part():
    table = {
        "model": [name for name in (LIGHTNET, MAMBA) for _ in range(4)],
        "part": ["valid", "test"] * 4,
        "nats per word": [9, 3.3, 9, 3.0, 9, 3.0, 9, 3.0],
    }
    (measured,) = wikitext103._measured(table).values()
    np.testing.assert_allclose(measured, [0.1, 0.0], atol=1e-12)
    assert wikitext103._measured({"model": [LIGHTNET], "part": ["test"], "nats per word": [3.0]}) == {}


@pytest.mark.parametrize("model", ["multiplicative-2+lrpe", "lightnet", "lightnet+nowhere", "other+both"])
def test_models_that_are_none_are_refused(model):
    with pytest.raises(ValueError, match="models: got"):
        Config(models=(model,))
