"""PLD's temperatures: the gap, the weights of positions, and what the claims are made of."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import pld_temperature
from experiments.distillation.networks import Outputs

CPU = pld_temperature.PRESETS["cpu"]


def test_position_aware_weights_follow_the_label_and_then_the_teacher():
    rng = np.random.default_rng(1)
    s, t, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    assert (t.argmax(1) != y).any()
    total = 0.0
    weights = 2.0 ** -np.arange(4) / (2.0 ** -np.arange(4)).sum()
    for scores, teacher, label in zip(s, t, y, strict=True):
        order = [label, *(place for place in np.argsort(-teacher) if place != label)]
        for place, weight in enumerate(weights):
            rest = scores[order[place:]]
            total += weight * (np.log(np.exp(rest).sum()) - rest[0])
    outputs = [Outputs(jnp.asarray(x, jnp.float32), jnp.zeros((6, 1))) for x in (s, t)]
    found = pld_temperature.position_aware(*outputs, jnp.asarray(y), 1.0)
    np.testing.assert_allclose(found, total / 6, rtol=1e-5)


@pytest.mark.slow
def test_claims_are_about_the_temperature_that_other_seeds_choose(tmp_path, monkeypatch):
    from experiments.distillation import students

    def distilled(self, objective, teachers, temperatures):
        reported = np.array(self.seeds)[None] < 10**6
        height = np.array([[1.0], [5.0], [3.0], [4.5]][: len(temperatures)])
        # the second of three is chosen; the rule comes last
        test = np.where(reported, height, 0.0) + np.arange(len(self.seeds))[None]
        found = {name: test for name in ("accuracy", "agreement", "entropy", "calibration error")}
        return {"test": found, "validation": {"accuracy": np.where(reported, 0.0, height)}}

    monkeypatch.setattr(students.Students, "distil", distilled)
    config = replace(pld_temperature.PRESETS["smoke"], seeds=(3, 4))
    measured = pld_temperature.run(config, tmp_path).measured
    names = ("pld-temperature-inverted-u", "pld-above-listmle", "pld-temperature-rule")
    assert [list(measured[f"distillation/{name}"]) for name in names] == [[2.0, 2.0], [4.0, 4.0], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperatures", (2.0, 1.0, 4.0), "temperatures: got .*, expected at least three, ascending"),
        ("temperatures", (0.0, 1.0, 4.0), "temperatures: got 0.0"),
        ("teacher_steps", (5,), "teacher_steps: got .*, expected 1000 among them"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
