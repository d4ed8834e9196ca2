"""The phases of training: the smoke run, what counts as the plateau, refusals."""

import numpy as np
import pytest

from experiments.markov_dynamics import induction_phases
from experiments.markov_dynamics.induction_phases import PRESETS, Config, measure
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run(tmp_path):
    result = check_run(induction_phases, PRESETS["smoke"], tmp_path)
    curve = result.series["training"]
    assert curve["cross_entropy"].shape == (2, 3)
    # Untrained models guess uniformly, with uniform attention.
    assert curve["cross_entropy"][:, 0] == pytest.approx(np.log(2), abs=0.05)
    assert curve["to_uniform"][:, 0] == pytest.approx(0, abs=0.05)
    references = result.tables["references"]
    assert all(truth <= other for truth, other in zip(references["truth"], references["bigram"], strict=True))


def test_the_plateau_ends_when_the_bigram_is_nearer_for_the_first_time():
    def values(to_unigram, to_bigram):
        ones = np.ones((1, len(to_unigram)))
        metrics = {"to_unigram": np.array([to_unigram]), "to_bigram": np.array([to_bigram])}
        found = measure(metrics | {"cross_entropy": ones, "previous_token": ones}, np.array([0.9]))
        return [round(found[f"markov_dynamics/E1-{name}"][0], 6) for name in ("phases", "curves-cross")]

    assert values([0.3, 0.05, 0.06, 0.01], [0.4, 0.06, 0.02, 0.005]) == [0.05, 0.005]
    # Later evaluations nearer to the unigram do not count once the curves have crossed.
    assert values([0.3, 0.05, 0.06, 0.01], [0.4, 0.06, 0.02, 0.015]) == [0.05, -0.005]
    assert values([0.3, 0.05], [0.4, 0.1]) == [0.05, -0.05]  # they never cross
    assert values([0.3, 0.2], [0.1, 0.05]) == [0.3, -0.2]  # there is no plateau


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("alphabet", 1, "alphabet: got 1"), ("length", 1, "length: got 1"), ("evaluation_rows", 0, "evaluation_rows")],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
