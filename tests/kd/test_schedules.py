"""Schedules at their ends and between, and with an epoch that is not known when they are compiled."""

import jax
import numpy as np
import pytest

from kd.schedules import dkd_warmup, mdcs_weight, temperature_anneal

SCHEDULES = [
    (dkd_warmup, (0, 5, 20, 100), (0, 0.25, 1, 1)),
    (mdcs_weight, (0, 10, 20, 300), (0, 0.3, 0.6, 0.6)),
    (lambda epoch: temperature_anneal(epoch, start=4.0, epochs=7), (0, 2, 6), (4, 3, 1)),
]


@pytest.mark.parametrize(("schedule", "epochs", "values"), SCHEDULES)
def test_values(schedule, epochs, values):
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(np.array(epochs)), values, rtol=1e-6)


def test_refused():
    with pytest.raises(ValueError, match="^epoch: got -1.0, expected a number of at least 0"):
        dkd_warmup(-1)
    with pytest.raises(ValueError, match="^epochs: got 1, expected an integer of at least 2"):
        temperature_anneal(0, start=4.0, epochs=1)
