"""The lemmas behind theorem 4.5: the smoke run, the longest likely string by enumeration, and refusals."""

import itertools
import math

import numpy as np
import pytest

from experiments.sources import MarkovSource, SwitchingSource
from experiments.tokenization import lzw_tokens
from experiments.tokenization.heavy_hitting import worst_log_probability
from experiments.tokenization.lzw_tokens import PRESETS, Config, longest_likely
from tests.experiments.result_run import check_run


def test_smoke_run_and_what_must_hold_at_any_size(tmp_path):
    result = check_run(lzw_tokens, PRESETS["smoke"], tmp_path)
    assert result.measured["tokenization/LemA6-heavy-hitting-cross-entropy"][0] >= 0
    assert result.measured["tokenization/LemA7-likely-strings-short"][0] <= 0
    table = result.tables["dictionaries"]
    assert all(tokens <= size for tokens, size in zip(table["tokens"], table["size"], strict=True))
    assert len(table["size"]) == 2 * 2 * 2  # sources, seeds, sizes


@pytest.mark.parametrize(
    "kernel",
    [[[0.1, 0.9], [0.6, 0.4]], [[0.2, 0.8], [0.8, 0.2]], [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.25, 0.25]]],
)
def test_the_longest_likely_string_by_enumeration(kernel):
    source = MarkovSource(kernel)
    for threshold in (-0.1, -0.5, -0.9, -1.7):
        likely = [
            length
            for length in range(1, 10)
            if worst_log_probability(list(itertools.product(range(source.alphabet), repeat=length)), source).max()
            >= threshold
        ]
        assert likely == list(range(1, longest_likely(source, threshold) + 1)) and len(likely) < 9


def test_the_longest_likely_string_of_a_fair_coin():
    coin = SwitchingSource(1, 0.5, 0.5)
    assert [longest_likely(coin, -n * math.log(2) - 1e-9) for n in (1, 7)] == [1, 7]
    assert longest_likely(coin, -0.5) == 0


def test_exponents_are_compared_between_the_first_and_the_last_size():
    config = Config(seeds=(0,), sizes=(50, 90, 200))
    rows = [
        {"seed": 0, "size": size, "beta": beta, "cross_entropy": 3.0, "cross_entropy_bound": 1.0, "tokens": 9}
        | {"least_tokens": 3.0, "longest": 4, "longest_bound": 9.0, "rarest": -3.0, "rarest_bound": -5.0}
        for size, beta in ((50, 0.1), (50, 0.2), (90, 9.0), (200, 0.5), (200, 0.4))
    ]
    measured = lzw_tokens._measured(config, rows, [{"longest": 3, "bound": 5.0}])
    assert measured["tokenization/Thm45-heavy-hitting"] == [0.4]
    np.testing.assert_allclose(measured["tokenization/heavy-hitting-exponent-grows"], [0.3])
    assert measured["tokenization/LemA8-token-length"] == [-5.0]
    assert measured["tokenization/LemA11-no-rare-token"] == [2.0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sizes", (50,), "the number of sizes: got 1"),
        ("sizes", (50, 50), "expected rising values"),
        ("sources", ((0.5, 1.0),), "each probability of sources: got 1.0"),
        ("gamma", 0.0, "gamma: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
