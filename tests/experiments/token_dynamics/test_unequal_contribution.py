"""Unequal contribution: ranks, controls, and which numbers a claim is of."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.token_dynamics import unequal_contribution
from experiments.token_dynamics.text_models import append_row
from experiments.token_dynamics.unequal_contribution import CONTROLS, PREDICTORS

SMOKE = unequal_contribution.PRESETS["smoke"]


def test_rank_correlation_is_spearmans_with_ties():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 4, (2, 3, 5, 11)).astype(float)
    found = unequal_contribution.rank_correlation(a, b)
    expected = [[spearmanr(x, y).statistic for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.isnan(unequal_contribution.rank_correlation(np.ones(4), np.arange(4.0)))


def test_controls_keep_what_they_should():
    random = np.random.default_rng(0)
    content, of_place = random.standard_normal((6, 400)), random.standard_normal(400)
    found = {"share": content + of_place, "rate": content + of_place, "norm": -content, "importance": content}
    values = unequal_contribution.correlations(found, np.random.default_rng(1))
    assert values["share", "rate"] == 1 and abs(values["share", "shuffled rate"]) < 0.1
    assert values["share", "rate of another"] == pytest.approx(0.5, abs=0.1)  # half of the variance is the place's
    assert abs(values["share", "position"]) < 0.15
    assert values["share", "norm"] == -values["share", "importance"] < -0.5
    assert values["share", "rate, norm fixed"] == pytest.approx(1)
    assert values["importance", "rate"] > 0.5 and abs(values["importance", "shuffled rate"]) < 0.1
    assert {name for first, name in values if first == "share"} == {*PREDICTORS, *CONTROLS}


def test_claims_are_means_over_layers_and_trained_states_of_a_seed():
    rows = {"model": [], "seed": [], "updates": [], "layer": [], "tokens": [], "predictor": [], "correlation": []}
    base = {("share", "rate"): 0.5, ("share", "shuffled rate"): 0.01, ("share", "rate of another"): 0.2}
    base |= {
        ("share", "importance"): 0.3,
        ("share", "rate, norm fixed"): 0.4,
        ("importance", "rate"): 0.7,
        ("importance", "shuffled rate"): -0.1,
    }
    for model in ("free", "positive"):
        for seed in (3, 5):
            for step in (0, 10, 20):
                for layer in (0, 1):
                    for pair, value in base.items():
                        away = (100 if step == 0 else step / 1000 + layer / 100 + seed / 100) - (model == "free") / 4
                        row = (model, seed, step, layer, *pair, value + away)
                        append_row(rows, *row)
    measured = unequal_contribution._measured(replace(SMOKE, seeds=(3, 5)), rows)
    assert set(measured) == {claim.id for claim in unequal_contribution.CLAIMS}
    away = np.array([0.015 + 0.005 + 0.03, 0.015 + 0.005 + 0.05])
    expected = {
        "abstract-unequal-contribution": 0.49 + 0 * away,
        "unequal-contribution-free": 0.49 + 0 * away,
        "unequal-contribution-position": 0.3 + 0 * away,
        "unequal-contribution-norm": 0.4 + away,
        "unequal-contribution-shuffled": 0.01 + away - 0.125,
        "importance-rate": 0.8 + 0 * away,
        "importance-gradient": 0.3 + away,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(measured[f"token_dynamics/{name}"], values, atol=1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_has_every_model_state_and_layer(tmp_path):
    result = unequal_contribution.run(SMOKE, tmp_path)
    rows = result.tables["correlations"]
    assert len(rows["model"]) == 2 * 3 * 1 * (len(PREDICTORS) + len(CONTROLS) + 2)
    assert sorted(set(rows["updates"])) == [0, 2, 4] and set(rows["model"]) == {"free", "positive"}
    assert np.isfinite(rows["correlation"]).all()
    curves = result.series["relative share by rate"]
    for name in ("free", "positive"):
        assert curves[name].shape == (1, 8) and curves[name].mean() == pytest.approx(1, rel=1e-5)
    assert min(result.tables["shares"]["share of the first tenth"]) > 2 / 16  # two of sixteen tokens


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (replace(SMOKE.train, eval_every=1), "train.eval_every: expected train.checkpoint.permanent_every"),
        (replace(SMOKE.train, checkpoint=replace(SMOKE.train.checkpoint, permanent_every=0)), "permanent_every: got 0"),
    ],
)
def test_states_without_a_loss_are_refused(train, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, train=train)
