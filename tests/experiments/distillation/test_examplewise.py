"""Means over examples give what is measured of all of them together."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation.examplewise import collected, example_measures
from experiments.distillation.measures import beside


@pytest.mark.slow
@pytest.mark.exhaustive
def test_batches_of_any_size_give_what_the_whole_set_gives():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(3 * rng.normal(size=(53, 6)), jnp.float32) for _ in range(2))
    # Right as often when unsure as when sure, so that gaps have both signs and the bins matter.
    labels = jnp.where(rng.random(53) < 0.6, student.argmax(axis=1), rng.integers(0, 6, 53))
    parts = [example_measures(student[i : i + 9], teacher[i : i + 9], labels[i : i + 9]) for i in range(0, 53, 9)]
    means = {name: float(np.concatenate([part[name] for part in parts]).mean()) for name in parts[0]}
    whole = beside(student, teacher, labels)
    assert set(collected(means)) == set(whole)
    for name, value in collected(means).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-5, err_msg=name)
    assert whole["calibration error"] != whole["teacher calibration error"]
