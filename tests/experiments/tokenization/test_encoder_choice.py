"""Theorem E.2: the smoke run, exact against sampled losses, and refusals."""

import numpy as np
import pytest

from experiments.tokenization import encoder_choice
from experiments.tokenization.encoder_choice import PRESETS, Config
from tests.experiments.result_run import check_run


def test_smoke_run_and_what_must_hold_at_any_size(tmp_path):
    result = check_run(encoder_choice, PRESETS["smoke"], tmp_path, absent={"Th3-encoder-ratio"})
    measured = result.measured
    assert measured["tokenization/Th3-constant"][0] == pytest.approx(1.2724, abs=1e-4)
    assert result.tables["constant"]["delta"][0] == pytest.approx(0.040, abs=5e-4)
    assert measured["tokenization/Th3-greedy-encoder"][0] > 0
    greedy, minimal = result.tables["greedy"], result.tables["minimal"]
    exact = dict(zip(greedy["delta"], greedy["unigram"], strict=True))
    for delta, sampled, fewest in zip(minimal["delta"], minimal["greedy_unigram"], minimal["unigram"], strict=True):
        # 20,000 symbols fitted and scored: about d / 20,000 above the best model, and some noise.
        assert sampled == pytest.approx(exact[delta], abs=0.03)
        assert fewest < exact[delta]
    # The reference values of both encoders, in entropy rates.
    rates = np.array(greedy["entropy_rate"])
    np.testing.assert_allclose(np.array(greedy["unigram"]) / rates, [1.37, 1.83], atol=0.01)


def test_the_ratio_is_taken_at_the_small_delta_only():
    greedy = [{"delta": d, "unigram": 6 * d, "lower_bound": d, "entropy_rate": d} for d in (0.1, 0.02)]
    rows = [{"seed": s, "delta": d, "unigram": (1 + s) * d} for s in (0, 1) for d in (0.1, 0.02)]
    measured = encoder_choice._measured(Config(seeds=(0, 1)), greedy, rows, 1.2)
    assert measured["tokenization/Th3-encoder-ratio"] == pytest.approx([6, 3])
    assert measured["tokenization/Th3-minimal-encoder"] == pytest.approx([1, 2])
    assert measured["tokenization/Th3-greedy-encoder"] == pytest.approx([0.1])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("deltas", (), "the number of deltas: got 0"),
        ("deltas", (0.5,), "each of deltas: got 0.5, expected at least 0.0001 and below 0.5"),
        ("symbols", 0, "symbols: got 0"),
        ("alpha", 0.0, "alpha: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
