"""Figure 7 with all tokenizers: the smoke run, which rows the claims are made of, refusals."""

import pytest

from experiments.tokenization import text_tokenizers
from experiments.tokenization.text_tokenizers import PRESETS, TOKENIZERS, Config, measure
from tests.experiments.result_run import check_run

ABSENT = {"Fig7-wordpiece-unigram-tokenizers", "F7-unigram-tokenizer-best"}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_smoke_run_and_what_must_hold_at_any_size(tmp_path):
    result = check_run(text_tokenizers, PRESETS["smoke"], tmp_path, absent=ABSENT)
    rows = result.tables["losses"]
    assert rows["tokenizer"][:6] == ["characters, 1-gram", "characters, 2-gram", *TOKENIZERS]
    assert all(size == vocabulary for size, vocabulary in zip(rows["size"], rows["vocabulary"], strict=True))
    assert all(length >= 1 for length in rows["symbols_per_token"])
    # A k-gram's row holds the (k+1)-gram too, so that the second row's loss is in the first.
    assert rows["held_out_one_longer"][0] == rows["held_out"][1]
    assert list(result.data) == ["text: Python documentation topics"]


def test_claims_are_made_of_the_rows_they_name():
    config = Config(seeds=(7,), sizes=(500, 1000))
    held_out = {
        ("LZW", 500): 3.0, ("BPE", 500): 2.0, ("WordPiece", 500): 2.2, ("Unigram", 500): 1.9,
        ("LZW", 1000): 2.8, ("BPE", 1000): 1.8, ("WordPiece", 1000): 1.7, ("Unigram", 1000): 1.5,
    }  # fmt: skip
    rows = [
        {"seed": 7, "tokenizer": name, "size": size, "held_out": loss, "in_sample": loss - 0.1}
        for (name, size), loss in held_out.items()
    ]
    rows.append({"seed": 7, "tokenizer": "characters, 2-gram", "size": 9, "held_out": 2.4, "in_sample": 2.3})
    measured = measure(config, rows)
    assert measured["tokenization/Fig7-wordpiece-unigram-tokenizers"] == pytest.approx([-0.2])
    assert measured["tokenization/F7-unigram-tokenizer-best"] == pytest.approx([-0.2])
    assert measured["tokenization/F7-all-tokenizers-improve"] == pytest.approx([-0.4])
    assert measure(Config(seeds=(7,), sizes=(500,)), rows).keys() == {"tokenization/Fig7-wordpiece-unigram-tokenizers"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sizes", (500, 300), "sizes: got .*, expected rising values"),
        ("orders", 1, "orders: got 1"),
        ("folds", 1, "folds: got 1"),
        ("characters", 0, "characters: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
