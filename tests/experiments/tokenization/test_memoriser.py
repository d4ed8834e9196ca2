"""Theorem D.1: the smoke run, the promise of the training text, and refusals."""

import math

import pytest

from experiments.tokenization import memoriser
from experiments.tokenization.memoriser import PRESETS, Config, _promised
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run_and_what_must_hold_at_any_size(tmp_path):
    result = check_run(memoriser, PRESETS["smoke"], tmp_path)
    assert result.measured["tokenization/ThmD1-lower-bound"][0] > 0
    long, short = result.tables["long texts"], result.tables["short texts"]
    # A text of 500 symbols does not come again in 5000: both encoders write characters.
    assert long["greedy"] == long["minimal"]
    assert all(promised < fresh for promised, fresh in zip(long["promised"], long["greedy"], strict=True))
    bounds = [bound for bound in short["bound"] if bound is not None]
    assert bounds and len(bounds) < len(short["bound"])  # the shortest texts at p = 0.1 come again too often
    assert all(loss <= math.log(2) + 1e-9 for loss in short["unigram"])


def test_the_promise_is_theorem_4_3_and_refuses_likely_texts():
    assert _promised(0.5, 0.1, 2 * math.log(10)) == pytest.approx(1.0)
    assert _promised(0.5, 0.1, math.log(10)) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("probabilities", (0.1, 1.0), "each of probabilities: got 1.0"),
        ("short_texts", (1,), "the smallest of short_texts: got 1"),
        ("short_texts", (5000,), "the largest of short_texts: got 5000"),
        ("training_symbols", 1, "training_symbols: got 1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
