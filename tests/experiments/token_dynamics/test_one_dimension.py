"""The three regimes: what is measured of a configuration, and how a seed's number comes from its draws."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.token_dynamics import measures, one_dimension
from experiments.token_dynamics.measures import Setting, attention, entropy, first_to_blow_up
from experiments.token_dynamics.regimes import CONVERGENT, FAST, SLOW
from ssm.dynamics import convergence_constants, simulate

SMOKE = one_dimension.PRESETS["smoke"]
NAMES = {claim.id.partition("/")[2] for claim in one_dimension.CLAIMS}


def test_every_regime_has_its_configurations_and_they_depend_on_the_seed():
    first, second = (one_dimension.settings(replace(SMOKE, draws=3), seed) for seed in (0, 1))
    assert [setting.regime for setting in first] == [CONVERGENT] * 6 + [SLOW] * 3 + [FAST] * 3
    for setting in first:
        drive = setting.s_delta * setting.x0
        assert (setting.mu < 0) == (setting.regime == CONVERGENT)
        assert {SLOW: (drive < 0).all(), FAST: (drive > 0).any(), CONVERGENT: True}[setting.regime]
    assert not np.array_equal(first[0].x0, second[0].x0) and not np.array_equal(first[0].x0, first[2].x0)
    weights = np.array([[abs(setting.mu), abs(setting.s_delta), setting.a] for setting in first + second])
    assert (1 / SMOKE.spread <= weights).all() and (weights <= SMOKE.spread).all()
    assert len(np.unique(weights)) == 3 * 2 * (3 + 3 + 3)  # both signs of S_Delta share theirs
    alone = one_dimension.settings(replace(SMOKE, spread=1.0), 0)
    assert {(abs(setting.mu), abs(setting.s_delta), setting.a) for setting in alone} == {(1.0, 1.0, 1.0)}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_run_measures_every_claim_once_per_seed(tmp_path):
    result = one_dimension.run(replace(SMOKE, seeds=(7,), length=3, points=3), tmp_path)
    assert {id.partition("/")[2] for id in result.measured} == NAMES
    assert all(len(values) == 1 and np.isfinite(values).all() for values in result.measured.values())
    assert set(result.series) == {CONVERGENT, SLOW, FAST}
    assert result.series[FAST]["maps"].shape == (3, 3, 3)
    assert result.tables["named"]["blow-up"][0] == pytest.approx(1.01167, abs=1e-5)
    rows = result.tables[CONVERGENT]
    constants = convergence_constants(rows["x0"][:3], rows["mu"][0], rows["a"][0])
    np.testing.assert_allclose(np.abs(rows["x sqrt(t)"][:3]), constants, rtol=1e-3)


def test_the_attention_drives_the_tokens():
    """dx / dt = P x, by finite differences."""
    setting = Setting(FAST, np.array([-0.5, -0.3, 0.6]), 0.7, 1.2, 0.4)
    h = 1e-6
    slope = (simulate(setting.x0, 0.7, 1.2, 0.4, [h]).tokens[0] - setting.x0) / h
    np.testing.assert_allclose(attention(setting, setting.x0) @ setting.x0, slope, rtol=1e-4)


def test_numbers_that_speak_against_a_claim_count():
    found = one_dimension.worst(
        [
            {"fast-bound": 0.2, "different-rates": 3.0, "conv-constant-first-token": 1.01, "fast-blow-up": 1.0},
            {"fast-bound": 0.1, "different-rates": 2.0, "conv-constant-first-token": 0.98, "fast-blow-up": 0.0},
        ]
    )
    assert found == {
        "fast-bound": 0.2,
        "different-rates": 2.0,
        "conv-constant-first-token": 0.98,
        "fast-blow-up": 0.5,
    }


def test_a_configuration_of_another_regime_than_meant_is_told():
    """Parameters of another regime: nothing can be measured, or it is no success."""
    setting = Setting(CONVERGENT, np.array([0.5, -0.4]), 1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="mu: got 1.0, expected below 0"):
        measures.measured(setting)
    slow = measures.measured(Setting(SLOW, np.array([-0.5, 0.4]), 1.0, 1.0, 1.0))
    assert slow["Table1-regimes"] == 0 and slow["slow-global-existence"] == 0


def test_existence_is_what_is_observed(monkeypatch):
    setting = Setting(SLOW, np.array([-0.5, -0.4]), 1.0, 1.0, 1.0)
    assert 1.5 < measures.measured(setting)["slow-global-existence"] < 3
    monkeypatch.setattr(measures, "observed", lambda setting: FAST)
    assert measures.measured(setting)["slow-global-existence"] == 0


def test_a_slower_power_than_the_square_root_is_seen(monkeypatch):
    """Tokens as t^-0.495 have passed a test of the slope."""
    setting = Setting(CONVERGENT, np.array([0.5, -0.4]), -1.3, 0.8, 0.9)
    assert 0.99 < measures.measured(setting)["conv-rate"] < 1.01
    plain = Setting.tokens

    def slower(self, times):
        return plain(self, times) * (np.asarray(times, float)[:, None] / 1e6) ** 0.005

    monkeypatch.setattr(Setting, "tokens", slower)
    assert measures.measured(setting)["conv-rate"] > 1.05


def test_a_token_that_turns_back_or_changes_its_sign_is_seen(monkeypatch):
    import ssm.dynamics

    setting = Setting(CONVERGENT, np.array([0.5, -0.4]), -1.0, 1.0, 1.0)
    plain = ssm.dynamics.simulate_tokens
    assert measures.against_direction(setting) < 1e-9

    def changed(factor):
        def tokens(*arguments):
            found = plain(*arguments)
            found.tokens[10, 1] *= factor
            return found

        return tokens

    monkeypatch.setattr(ssm.dynamics, "simulate_tokens", changed(1.5))
    assert measures.against_direction(setting) > 1e-4
    monkeypatch.setattr(ssm.dynamics, "simulate_tokens", changed(-1.0))
    assert measures.against_direction(setting) == np.inf


def test_entropy_and_the_first_to_blow_up():
    assert entropy(np.eye(4)) == pytest.approx(2.0) and entropy(-np.eye(4)[:1]) == 0
    assert first_to_blow_up(np.array([1e-5, 0.3, 3.07, 3.07])) == 2


@pytest.mark.parametrize(("field", "value"), [("draws", 0), ("length", 1), ("spread", 0.9), ("points", 2)])
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        replace(SMOKE, **{field: value})
