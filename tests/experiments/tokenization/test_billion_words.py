"""The published dictionary sizes: what they are, and the whole pipeline from TFDS with small ones."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.sources import billion_words as source
from experiments.tokenization import billion_words
from experiments.tokenization.billion_words import PRESETS, Config
from tests.experiments.result_run import check_run
from tests.experiments.sources.made_up_billion_words import COUNTS, prepare

PAPER = PRESETS["paper"]


def test_the_sizes_are_the_published_ones():
    assert PAPER.sizes == (5000, 6000, 8000, 12_000, 20_000, 32_000, 50_000, 80_000)
    assert (PAPER.orders, PAPER.sweep().alpha) == (4, PAPER.alpha)


@pytest.mark.slow
def test_the_published_preset_on_generated_sentences(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "EXAMPLES", COUNTS)
    folder = prepare(tmp_path / "tfds")
    config = replace(
        PAPER, seeds=(0, 1), training_characters=30_000, scored_characters=9000, sizes=(70, 90), data_dir=folder
    )
    (fit, test), (other, _) = billion_words.texts(config)
    assert min(fit.size, other.size) >= 30_000 and test.size >= 9000
    assert not set(fit.documents) & set(other.documents)
    result = check_run(billion_words, config, tmp_path)
    table = result.tables["losses"]
    assert table["tokenizer"][:5] == [*(f"characters, {k}-gram" for k in range(1, 5)), "LZW"]
    assert set(result.data) == {f"LM1B, {split}, part {i}" for split in ("train", "test") for i in (0, 1)}
    # Thirteen words, mostly drawn evenly: a unigram over tokens that are words comes near log 13 nats per word.
    last = [loss for name, loss in zip(table["tokenizer"], table["held_out"], strict=True) if name == "Unigram"]
    assert np.max(last) < 1.2


@pytest.mark.parametrize(
    ("field", "value", "message"), [("sizes", (9, 8), "sizes: got"), ("orders", 1, "orders: got 1")]
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
