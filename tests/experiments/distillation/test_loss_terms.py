"""Weights of labels and DKD's terms."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import loss_terms
from experiments.distillation.networks import Outputs
from experiments.distillation.objectives import OBJECTIVES

CPU = loss_terms.PRESETS["cpu"]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(4)
    s, t = (Outputs(jnp.asarray(rng.normal(size=(9, 10)), jnp.float32), jnp.zeros((9, 1))) for _ in range(2))
    return s, t, jnp.asarray(rng.integers(0, 10, 9))


@pytest.mark.slow
def test_weighted_losses_are_those_of_the_table_at_the_ends(batch):
    ce = OBJECTIVES["ce"].loss(*batch, 1.0)

    def weighted(weight, loss):
        return float(loss_terms.weighted(*batch, weight, loss=loss, at=4.0))

    for loss in loss_terms.LOSSES:
        np.testing.assert_allclose(weighted(1.0, loss), ce, rtol=1e-6)
    np.testing.assert_allclose(weighted(0.1, "hinton"), OBJECTIVES["hinton"].loss(*batch, 4.0), rtol=1e-6)
    np.testing.assert_allclose(weighted(0.0, "pld"), OBJECTIVES["pld"].loss(*batch, 4.0), rtol=1e-6)
    np.testing.assert_allclose(2 * weighted(0.0, "dist") + ce, OBJECTIVES["dist"].loss(*batch, 4.0), rtol=1e-6)


def test_claims():
    sweep = {"hinton, 0.1": 95, "hinton, 0.9": 90, "dist, 0.1": 93, "dist, 0.9": 92}
    terms = {"alpha 0, beta 1": 94, "alpha 1, beta 0": 91}
    sweep, terms = ({name: {"accuracy": [value, value]} for name, value in each.items()} for each in (sweep, terms))
    measured = loss_terms._measured(sweep, terms)
    assert list(measured["distillation/pld-ce-weight-sweep"]) == [1, 1]
    assert list(measured["distillation/dkd-nontarget-carries"]) == [3, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [("weights", (0.0, 1.0)), ("weights", (0.1, 0.9, 1.1)), ("terms", ((1, 1),)), ("temperature", 0)],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}: got"):
        replace(CPU, **{field: value})
