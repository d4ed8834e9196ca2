"""Sequential BPE: the smoke run in both regimes, where the claims are measured, and refusals."""

from dataclasses import replace

import pytest

from experiments.tokenization import sequential_regimes
from experiments.tokenization.sequential_regimes import PRESETS, Config
from tests.experiments.result_run import check_run

AT_500 = {"ours-sequential-bpe-small", "ours-sequential-bpe-loss"}


def test_smoke_run_in_both_regimes(tmp_path):
    result = check_run(sequential_regimes, PRESETS["smoke"], tmp_path, absent=AT_500)
    losses = result.tables["losses"]
    assert losses["regime"] == ["greedy", "split"] * 6
    assert [bound is None for bound in losses["split_bound"]] == [True, False] * 6
    assert losses["tokens"][::2] == losses["tokens"][1::2]  # the rules do not depend on eps
    assert result.measured["tokenization/Thm47-sequential-bpe"][0] < 0


def test_claims_about_500_tokens_need_both_published_sources():
    def row(seed, p, tokens, unigram):
        numbers = {"unigram": unigram, "entropy_rate": 0.5, "bound": 1.1, "split_bound": None}
        return {"seed": seed, "p": p, "regime": "greedy", "tokens": tokens, **numbers}

    config = Config(seeds=(0, 1))
    rows = [row(seed, p, 20 + 4 * seed, 0.6 + p) for seed in (0, 1) for p in (0.05, 0.1, 0.8)]
    measured = sequential_regimes._measured(config, rows)
    assert measured["tokenization/ours-sequential-bpe-small"] == [20, 24]
    assert measured["tokenization/ours-sequential-bpe-loss"] == pytest.approx([2.8, 2.8])
    assert "tokenization/ThmB1-small-dictionary" not in measured  # nothing was split
    fewer = [entry for entry in rows if entry["p"] != 0.8]
    assert set(sequential_regimes._measured(config, fewer)) == {"tokenization/Thm47-sequential-bpe"}
    other = replace(config, size=400)
    assert set(sequential_regimes._measured(other, rows)) == {"tokenization/Thm47-sequential-bpe"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epsilons", (0.1, 1.0), "each of epsilons: got 1.0"),
        ("probabilities", (), "the number of probabilities: got 0"),
        ("size", 10_000, "size: got 10000, expected between 2 and 5000"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
