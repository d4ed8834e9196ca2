"""Equation 4: the smoke run, what the misled dictionary lacks, and refusals."""

import numpy as np
import pytest

from experiments.tokenization import misleading_text
from experiments.tokenization.misleading_text import PRESETS, Config
from tests.experiments.result_run import check_run


def test_smoke_run_and_the_tokens_that_are_missing(tmp_path):
    result = check_run(misleading_text, PRESETS["smoke"], tmp_path)
    tokens = result.tables["tokens"]["token"]
    assert len(tokens) == 12 and not any("000" in token or "111" in token for token in tokens)
    losses = result.tables["losses"]
    assert losses["training_text"] == ["misleading", "typical"] * 2
    assert losses["unigram"][0] > losses["unigram"][1] and losses["single_share"][0] > losses["single_share"][1]


def test_the_text_is_whole_blocks_and_nearly_always_equals_itself_two_symbols_before():
    text = misleading_text.misleading_text(Config(period=9, training_symbols=1000))
    assert len(text) == 1000 // 36 * 36
    # Two of each 2 r symbols differ: at the seam in the middle of a block and at its end.
    assert np.mean(text[2:] != text[:-2]) == pytest.approx(1 / 9, abs=0.005)
    assert text.mean() == 0.5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("period", 1, "period: got 1"), ("size", 2, "size: got 2"), ("training_symbols", 35, "training_symbols: got 35")],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
