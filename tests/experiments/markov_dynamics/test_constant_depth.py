"""Two layers on chains of order 2: the smoke run, what the evaluation is compared with, refusals."""

import numpy as np
import pytest

from experiments.markov_dynamics import constant_depth
from experiments.markov_dynamics.constant_depth import PRESETS, Config, evaluation_set
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run(tmp_path):
    result = check_run(constant_depth, PRESETS["smoke"], tmp_path)
    table = result.tables["last"]
    assert result.series["training"]["cross_entropy"].shape == (2, 3)
    assert table["gap"] == pytest.approx(np.subtract(table["cross_entropy"], table["optimal"]).tolist())
    assert all(truth < optimal for truth, optimal in zip(table["truth"], table["optimal"], strict=True))


@pytest.mark.slow
def test_the_optimum_counts_what_followed_the_last_two_symbols():
    chosen = evaluation_set(Config(order=2, length=9, evaluation_rows=6), 1)
    symbols, optimal = np.asarray(chosen["symbols"]), np.asarray(chosen["optimal"])
    for b in range(6):
        for t in range(1, 10):
            counts = np.ones(2)
            for i in range(2, t):
                if t >= 2 and (symbols[b, i - 2 : i] == symbols[b, t - 2 : t]).all():
                    counts[symbols[b, i]] += 1
            np.testing.assert_allclose(optimal[b, t - 1], counts / counts.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("order", 0, "order: got 0"), ("length", 1, "length: got 1"), ("layers", 0, "layers: got 0")],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
