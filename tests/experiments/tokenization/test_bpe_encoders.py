"""Remark A.2: the smoke run, what the encoders share, and refusals."""

import pytest

from experiments.tokenization import bpe_encoders
from experiments.tokenization.bpe_encoders import PRESETS, SHORT, Config
from tests.experiments.result_run import check_run


def test_smoke_run_and_what_must_hold_at_any_size(tmp_path):
    result = check_run(bpe_encoders, PRESETS["smoke"], tmp_path, absent={"RemA2-encoder-dependence"})
    rows = result.tables["losses"]
    found = dict(zip(zip(rows["seed"], rows["size"], rows["encoder"], strict=True), rows["unigram"], strict=True))
    length = dict(
        zip(zip(rows["seed"], rows["size"], rows["encoder"], strict=True), rows["symbols_per_token"], strict=True)
    )
    for seed in (0, 1):
        for size in (4, 10):
            # Fewest tokens: none are longer on average. Likeliest: no worse than the encoder it was fitted with,
            # but for the text's being another one.
            for encoder in ("merges", "greedy", "likeliest"):
                assert length[seed, size, "minimal"] >= length[seed, size, encoder] - 1e-12
            assert found[seed, size, "likeliest"] <= found[seed, size, "merges"] + 0.003
        assert (seed, 10, SHORT) in found and (seed, 4, SHORT) not in found
    difference = result.measured["tokenization/ours-bpe-training-variance"][1]
    assert difference == pytest.approx(found[1, 10, SHORT] - found[1, 10, "merges"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("order", 0, "order: got 0"),
        ("sizes", (1, 10), "the smallest of sizes: got 1"),
        ("p", 1.0, "p: got 1.0"),
        ("short_symbols", 0, "short_symbols: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
