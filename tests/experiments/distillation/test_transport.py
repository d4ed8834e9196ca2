"""Variants of the transport, and what the claims are made of."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from experiments.distillation import transport
from experiments.distillation.networks import Outputs
from experiments.distillation.objectives import OBJECTIVES

CPU = transport.PRESETS["cpu"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_variants_are_the_losses_of_the_table_and_their_transport():
    rng = np.random.default_rng(5)
    s, t = (Outputs(jnp.asarray(rng.normal(size=(6, 10)), jnp.float32), jnp.zeros((6, 1))) for _ in range(2))
    y, some = jnp.asarray(rng.integers(0, 10, 6)), transport.objectives(CPU)

    def extra(name, base):
        return float(some[name].loss(s, t, y, 8.0) - OBJECTIVES[base].loss(s, t, y, 8.0))

    batch = float(kd.sinkd(s.logits, t.logits)) / 6
    np.testing.assert_allclose(some["KD + batch-wise"].loss(s, t, y, 8.0), OBJECTIVES["sinkd"].loss(s, t, y, 8.0))
    np.testing.assert_allclose(extra("CE + 4", "ce"), 4 * batch, rtol=1e-5)
    single = float(kd.sinkd_sample_wise(s.logits, t.logits)) / 6
    np.testing.assert_allclose(extra("KD + sample-wise", "hinton"), 0.8 * single, rtol=1e-4)
    assert 0 < extra("KD + debiased", "hinton") < extra("KD + batch-wise, eps 1", "hinton")


def test_claims_take_the_largest_gain_over_the_weights():
    values = {"KD + batch-wise": 95, "KD + sample-wise": 94, "CE": 90}
    values |= {f"CE + {weight:g}": 90 + weight for weight in CPU.weights}
    measured = transport._measured(CPU, {name: {"accuracy": [value]} for name, value in values.items()})
    assert {id: list(value) for id, value in measured.items()} == {
        "distillation/sinkd-batchwise-better": [1.0],
        "distillation/sinkd-digits-labels": [4.0],
    }


@pytest.mark.parametrize(
    ("field", "value"), [("batches", (1,)), ("entropies", (0.0,)), ("weights", ()), ("weights", (-1.0,))]
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}: got"):
        replace(CPU, **{field: value})
