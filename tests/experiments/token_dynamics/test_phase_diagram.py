"""The phase diagram: draws of every kind, regimes told without theory, and what counts as wrong."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.token_dynamics import phase_diagram
from experiments.token_dynamics.phase_diagram import Draws, draw, outside_majority, predicted
from experiments.token_dynamics.regimes import CONVERGENT, FAST, SLOW, UNDECIDED, _told, observe

SMOKE = phase_diagram.PRESETS["smoke"]


def test_draws_cover_all_signs_within_their_ranges():
    config = replace(SMOKE, draws=400)
    draws = draw(config, 3, biased=False)
    drive = draws.s_delta * draws.x0
    kinds = [(drive < 0).all(axis=0), (drive > 0).all(axis=0), (drive < 0).any(axis=0) & (drive > 0).any(axis=0)]
    for signs in (draws.mu > 0, draws.s_delta > 0, *kinds):
        assert 60 < signs.sum() < 340
    for name, values in (("mu", draws.mu), ("s_delta", draws.s_delta), ("a", draws.a)):
        low, high = getattr(config, name)
        assert (np.abs(values) >= low).all() and (np.abs(values) <= high).all()
        assert np.median(np.log(np.abs(values))) == pytest.approx(np.log([low, high]).mean(), abs=1)
    assert not draws.bias.any() and draw(config, 3, biased=True).bias.all()
    assert not np.array_equal(draw(config, 4, biased=False).x0, draws.x0)


def test_predicted_and_simulated_agree_on_a_few():
    draws = draw(replace(SMOKE, draws=40), 9, biased=False)
    found = observe(draws.x0, draws.mu, draws.s_delta, draws.a, draws.bias)
    np.testing.assert_array_equal(found.regimes, predicted(draws))
    assert set(found.regimes) == {CONVERGENT, SLOW, FAST}


def test_the_simulated_regime_is_told_by_tokens_and_clock_alone():
    """States at two times: theta and two tokens."""
    start, first = np.zeros((2, 6)), np.zeros((3, 6))
    second = np.array(
        [
            [0.0, 0.0, 9.0, 9.0, 9.0, 9.0],
            [5.0, 0.0, 0.5, -9.0, -9.0, -1.0],
            [0.0, 0.0, 0.3, -9.0, 2.0, -1.0],
        ]
    )
    found = _told(start, np.stack([first, second]))
    # time stands and a token grows; nothing happens; all grow; all fall far; both; all fall, but not far
    assert found.regimes.tolist() == [FAST, UNDECIDED, SLOW, CONVERGENT, UNDECIDED, UNDECIDED]
    assert found.finite.tolist() == [False] * 6


def test_a_token_that_rests_before_one_that_blows_up_is_a_third_case():
    start, first = np.zeros((3, 3)), np.zeros((4, 3))
    second = np.array([[0.0, 0.0, 0.0], [0.0, 9.0, 1e-9], [9.0, 0.0, 0.1], [0.1, 9.0, 9.0]])
    # before the first; only after it; before it, beside one that still grows
    assert _told(start, np.stack([first, second])).finite.tolist() == [True, False, True]
    one = np.ones(2)
    found = observe(np.array([[-0.5, 0.5], [0.6, -0.6]]), one, one, one, 0 * one)
    assert found.regimes.tolist() == [FAST, FAST] and found.finite.tolist() == [True, False]


def test_wrong_and_undecided_draws_are_counted_apart(monkeypatch, tmp_path):
    def told(x0, mu, s_delta, a, bias):
        regimes = predicted(Draws(x0, mu, s_delta, a, bias))
        regimes[0] = UNDECIDED
        if not bias.any():
            regimes[1] = next(name for name in (CONVERGENT, SLOW) if name != regimes[1])
        return phase_diagram.Observed(regimes.astype("U20"), np.zeros(len(mu), bool))

    monkeypatch.setattr(phase_diagram, "observe", told)
    result = phase_diagram.run(replace(SMOKE, seeds=(1, 2), draws=20, biased_draws=5), tmp_path)
    assert set(result.measured) == {claim.id for claim in phase_diagram.CLAIMS}
    assert result.measured["token_dynamics/phase-diagram"] == [1.0, 1.0]
    assert result.measured["token_dynamics/abstract-criterion"] == pytest.approx([1 / 19, 1 / 19])
    assert result.measured["token_dynamics/abstract-dichotomy"] == [0.0, 0.0]
    assert result.measured["token_dynamics/bias-keeps-criterion"] == [0.0, 0.0]
    table = result.tables["regimes"]
    undecided = [n for n, name in zip(table["draws"], table["simulated"], strict=True) if name == UNDECIDED]
    assert sum(undecided) == 4 and sum(table["draws"]) == 2 * (20 + 5)
    assert result.series["draws"]["mu"].shape == (40,)


def test_outside_the_majority():
    assert outside_majority(np.array([1, 1, 1, 4, 4]), np.array(["a", "a", "b", "b", "b"])) == pytest.approx(0.2)
    assert np.isnan(outside_majority(np.array([], int), np.array([], str)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("draws", 0, "draws: got 0"), ("length", 0, "length: got 0"), ("a", (0.0, 1.0), "the smaller end of a: got 0")],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **{field: value})
