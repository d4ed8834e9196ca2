"""The landscape of the two-parameter model: the smoke run, what counts as decided and wrong, and refusals."""

import numpy as np
import pytest

from experiments.markov_dynamics import landscape
from experiments.markov_dynamics.landscape import PRESETS, Config, entropies, exact_errors, misjudged, told
from experiments.sources import SwitchingSource
from tests.experiments.result_run import check_run


def test_smoke_run(tmp_path):
    result = check_run(landscape, PRESETS["smoke"], tmp_path)
    assert result.measured["markov_dynamics/M1-landscape"][0] < 1e-12
    starts = result.tables["starts"]
    assert len(starts["seed"]) == 2 * 2 * 4 and sum(starts["decided"]) > 100
    # Both ends occur among the far starts, so that the prediction has something to tell apart.
    far = [
        (t, d) for t, d, kind in zip(starts["trapped"], starts["decided"], starts["kind"], strict=True) if kind == "far"
    ]
    assert 0 < sum(t for t, _ in far) < sum(d for _, d in far)


def test_entropies_are_those_of_the_source():
    for p, q in [(0.2, 0.3), (0.5, 0.8), (0.9, 0.05)]:
        source = SwitchingSource(1, p, q)
        assert entropies(p, q) == pytest.approx((source.entropy_rate(), source.unigram_entropy()), abs=1e-12)


def test_only_losses_near_an_entropy_are_decided():
    low, high = entropies(0.1, 0.1)
    gap = high - low
    stayed, decided = told(low + gap * np.array([0.0, 0.05, 0.3, 0.7, 0.95, 1.0, 3.0]), 0.1, 0.1)
    assert stayed.tolist() == [False, False, False, True, True, True, True]
    assert decided.tolist() == [True, True, False, False, True, True, False]


def test_the_checks_of_the_landscape_can_fail(monkeypatch):
    assert (exact_errors(0.5, 0.8) < 1e-12, misjudged(0.5, 0.8)) == (True, 0)
    right = landscape.loss
    monkeypatch.setattr(landscape, "loss", lambda e, w, p, q: right(e, -np.asarray(w), p, q))
    assert exact_errors(0.5, 0.8) > 1e-3 and misjudged(0.5, 0.8) > 20


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("chains", ((0.4, 0.6),), "p \\+ q = 1"),
        ("chains", ((0.4, 1.0),), "each probability of chains: got 1.0"),
        ("starts", 0, "starts: got 0"),
        ("rate", 0.0, "rate: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
