"""Mixture against doubly stochastic chains alone: the smoke run, when the bigram counts as learnt, refusals."""

import numpy as np
import pytest

from experiments.markov_dynamics import doubly_stochastic
from experiments.markov_dynamics.doubly_stochastic import PRESETS, Config
from experiments.source_training import Curves
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run(tmp_path):
    result = check_run(doubly_stochastic, PRESETS["smoke"], tmp_path)
    assert result.tables["models"]["trained_on"] == ["doubly stochastic"] * 2 + ["mixture"] * 2
    curves = result.series
    # The same seeds begin with the same models, which are evaluated on the same sequences.
    np.testing.assert_allclose(curves["mixture"]["full"][:, 0], curves["doubly stochastic"]["full"][:, 0], rtol=1e-6)


def test_the_bigram_is_learnt_below_the_middle_of_each_seeds_own_references():
    losses = np.array([[1.1, 1.0, 0.94], [1.1, 1.0, 0.94]])
    curve = Curves(np.array([0, 10, 20]), {"doubly": losses}, None)
    known = {"unigram": [1.1, 1.1], "bigram": [0.8, 0.92]}
    assert doubly_stochastic._learnt(curve, known).tolist() == [20, 10]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("alphabet", 1, "alphabet: got 1"), ("share", 1.0, "share: got 1.0"), ("width", 0, "width: got 0")],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
