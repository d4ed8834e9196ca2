"""The best dictionary size: the smoke run, how growth is measured, and refusals."""

import numpy as np
import pytest

from experiments.tokenization import optimal_size
from experiments.tokenization.optimal_size import PRESETS, Config, _least_growth
from tests.experiments.result_run import check_run


@pytest.mark.slow
@pytest.mark.exhaustive
def test_smoke_run_and_what_must_hold_at_any_size(tmp_path):
    result = check_run(optimal_size, PRESETS["smoke"], tmp_path)
    losses = {name: np.array(column) for name, column in result.tables["losses"].items()}
    assert (losses["fitted"] > losses["best_unigram"]).all()
    assert (losses["best_unigram"] > losses["best_bigram"] - 1e-9).all()
    # More text, better fit: the mean over sizes and seeds, as single fits are noisy.
    short, long = (losses["fitted"][losses["length"] == n].mean() for n in PRESETS["smoke"].lengths)
    assert long < short
    theorem = result.tables["theorem"]
    assert all(tokens < length for tokens, length in zip(theorem["tokens"], theorem["length"], strict=True))


def test_the_least_growth_of_the_best_size():
    fitted = {(4, 10): 1.0, (16, 10): 2.0, (64, 10): 3.0, (4, 20): 2.0, (16, 20): 1.0, (64, 20): 3.0}
    fitted |= {(4, 30): 3.0, (16, 30): 2.0, (64, 30): 1.0}
    rows = [{"seed": 7, "size": d, "length": n, "fitted": loss} for (d, n), loss in fitted.items()]
    config = Config(seeds=(7,), sizes=(4, 16, 64), lengths=(10, 20, 30))
    assert _least_growth(config, rows, 7) == 2.0
    rows[-1]["fitted"] = 2.0  # now two sizes are equally good on the longest text, and the smaller one counts
    assert _least_growth(config, rows, 7) == 0.0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sizes", (64, 16), "sizes: got .*, expected rising values"),
        ("lengths", (), "the number of lengths: got 0"),
        ("p", 0.0, "p: got 0.0"),
        ("theta", 1.0, "theta: got 1.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
