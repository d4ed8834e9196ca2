"""Norm growth: of which models and states a claim is, and what a model without a part computes."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.token_dynamics import norm_growth
from experiments.token_dynamics.norm_growth import BARE, WHOLE
from experiments.token_dynamics.text_models import append_row

SMOKE = norm_growth.PRESETS["smoke"]


def test_claims_are_of_the_trained_models_and_the_whole_depth():
    rows = {"variant": [], "seed": [], "updates": [], "depth": [], "growth": []}
    variants = (WHOLE, "no gate", BARE, "positive", "negative")
    for number, name in enumerate(variants):
        for seed in (3, 5):
            for step in (0, 10):
                for depth in range(3):
                    value = 1000 * number + 100 * seed * (1 + (name == "negative")) + step + depth
                    append_row(rows, name, seed, step, depth, value)
    config = replace(SMOKE, seeds=(3, 5), variants=variants)
    measured = norm_growth._measured(config, rows)
    assert {id: values.tolist() for id, values in measured.items()} == {
        "token_dynamics/norm-growth-with-depth": [312, 512],
        "token_dynamics/norm-growth-bare": [2312, 2512],
        "token_dynamics/norm-growth-scenario": [-1300, -1500],
    }
    assert set(measured) == {claim.id for claim in norm_growth.CLAIMS}
    assert norm_growth._measured(replace(config, variants=("no gate",)), rows) == {}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_has_every_variant_state_and_depth(tmp_path):
    variants = ("no norm", BARE)
    result = norm_growth.run(replace(SMOKE, variants=variants), tmp_path)
    rows = {name: np.array(column) for name, column in result.tables["growth"].items()}
    assert len(rows["growth"]) == len(variants) * 2 * 3 and np.isfinite(rows["growth"]).all()
    assert not rows["growth"][rows["depth"] == 0].any() and rows["growth"][rows["depth"] == 2].all()
    assert result.tables["losses"]["variant"] == list(variants)
    ends = [rows["growth"][(rows["variant"] == name) & (rows["depth"] == 2)].tolist() for name in variants]
    assert len(set(map(tuple, ends))) == len(variants)


@pytest.mark.parametrize(
    ("variants", "message"),
    [(("wole",), "variants: unknown variant 'wole'; nearest: whole"), ((), "at least one"), ((BARE, BARE), "once")],
)
def test_variants_that_do_not_exist_are_refused(variants, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, variants=variants)
