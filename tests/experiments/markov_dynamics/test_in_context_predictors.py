"""Counting predictors: the smoke run, which rows are compared, refusals."""

import numpy as np
import pytest

from experiments.markov_dynamics import in_context_predictors
from experiments.markov_dynamics.in_context_predictors import PRESETS, Config, cross_entropy, measure
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run_and_what_must_hold_at_any_size(tmp_path):
    result = check_run(
        in_context_predictors, PRESETS["smoke"], tmp_path, absent={"C-bayes-optimal", "E-bigram-baseline"}
    )
    table = result.tables["losses"]
    own = [loss for loss, count in zip(table["loss"], table["pseudo_count"], strict=True) if count is None]
    assert len(own) == 2 and min(table["loss"]) >= min(own)


def test_the_margin_is_the_least_of_all_others():
    def rows(seed, alphabet, order, losses):
        known = {"seed": seed, "alphabet": alphabet, "order": order}
        return [{**known, "context": c, "pseudo_count": a, "loss": loss} for (c, a), loss in losses.items()]

    config = Config(seeds=(4,), chains=((2, 1), (2, 2)), length=100)
    found = measure(
        config,
        rows(4, 2, 1, {(1, None): 0.1, (1, 1.0): 0.5, (1, 2.0): 0.53, (0, 1.0): 0.6})
        + rows(4, 2, 2, {(2, None): 0.1, (2, 1.0): 0.5, (1, 1.0): 0.48, (3, 1.0): 0.6}),
    )
    assert found["markov_dynamics/E-bayes-bigram"] == pytest.approx([0.03])
    assert found["markov_dynamics/C-bayes-optimal"] == pytest.approx([-0.02])
    assert found["markov_dynamics/E-bigram-baseline"] == [0.5]


def test_certain_symbols_cost_nothing_and_impossible_ones_are_not_asked_for():
    truth = np.array([[[1.0, 0.0], [0.5, 0.5]]])
    assert cross_entropy(truth, truth) == pytest.approx(np.log(2) / 2)
    assert cross_entropy(np.array([[[0.25, 0.75], [0.5, 0.5]]]), truth) == pytest.approx((np.log(4) + np.log(2)) / 2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pseudo_counts", (1.0, 2.0), "pseudo_counts: got 1 among them"),
        ("chains", ((1, 1),), "each alphabet of chains: got 1"),
        ("chains", ((2, 0),), "each order of chains: got 0"),
        ("sequences", 0, "sequences: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
