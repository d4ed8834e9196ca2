"""Theorem 4.1's size against LZW: the smoke run, the claims of made-up rows, refusals."""

import math
from dataclasses import replace

import pytest

from experiments.errors import UserError
from experiments.tokenization import dictionary_growth
from experiments.tokenization.dictionary_growth import PRESETS, Config, measure, sizes
from tests.experiments.result_run import check_run


def test_smoke_run(tmp_path):
    result = check_run(dictionary_growth, PRESETS["smoke"], tmp_path, absent={"toy-exponential-dictionary"})
    table = result.tables["sizes"]
    for loss, rate, size in zip(table["unigram"], table["entropy_rate"], table["lzw"], strict=True):
        assert loss <= 2 * rate and size in sizes(PRESETS["smoke"])
    assert table["promised"][:2] == pytest.approx([0.2 ** (-2 / 0.99), 0.1 ** (-2 / 0.99)])


def test_a_factor_that_no_dictionary_reaches_is_said(tmp_path):
    config = replace(PRESETS["smoke"], factors=(1.02,))
    with pytest.raises(UserError, match="no LZW dictionary up to 40 is within a factor 1.02 at delta 0.2"):
        dictionary_growth.run(config, tmp_path)


def test_sizes_are_distinct_and_reach_both_ends():
    for largest, steps in [(4, 1), (40, 6), (2000, 12)]:
        tried = sizes(Config(largest=largest, steps=steps))
        assert tried[0] == 2 and tried[-1] == largest and tried == sorted(set(tried))


def test_exponents_and_logarithms_of_made_up_sizes():
    config = Config(seeds=(3,), deltas=(0.1, 0.01), factors=(2.0, 1.25))
    rows = [
        {"seed": 3, "delta": delta, "factor": factor, "lzw": size, "promised": 200.0, "log2_blocks": 12}
        for delta, factor, size in ((0.1, 2.0, 5), (0.01, 2.0, 50), (0.1, 1.25, 20), (0.01, 1.25, 256))
    ]
    measured = measure(config, rows)
    assert measured["tokenization/Thm41-polynomial-dictionary"] == pytest.approx([1.0])
    assert measured["tokenization/Thm41-size-suffices"] == pytest.approx([256 / 200])
    assert measured["tokenization/toy-exponential-dictionary"] == pytest.approx([12 - math.log2(256)])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("deltas", (0.1, 0.2), "deltas: got .*, expected falling values"),
        ("deltas", (0.1,), "the number of deltas: got 1"),
        ("factors", (1.0,), "each of factors: got 1.0"),
        ("largest", 3, "largest: got 3"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
