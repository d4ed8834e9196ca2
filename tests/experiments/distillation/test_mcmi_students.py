"""Few-shot and zero-shot students: what the claims are made of."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import mcmi_students
from experiments.distillation.mcmi_students import LONGER, MCMI, ORDINARY
from experiments.distillation.measures import accuracy_of

CPU = mcmi_students.PRESETS["cpu"]


def test_claims_compare_the_same_students_of_both_teachers():
    config = replace(CPU, shares=(0.1, 0.2, 0.5), curve=(1.0, 2.0, 4.0, 8.0))
    gains = {"hinton": (3.0, 1.0, -2.0), "crd": (0.5, -1.0, 4.0)}
    found = {}
    for objective, each in gains.items():
        for share, gain in zip(config.shares, each, strict=True):
            found[(ORDINARY, objective, share)] = {"accuracy": np.array([50.0, 60.0])}
            found[(MCMI, objective, share)] = {"accuracy": np.array([50.0 + gain, 60.0])}
    unseen = {
        f"{ORDINARY}, T 4": 1.0,
        f"{ORDINARY}, T 8": 7.0,
        f"{ORDINARY}, T 16": 5.0,
        f"{MCMI}, T 4": 6.0,
        f"{LONGER}, T 4": 8.0,
    }
    unseen = {name: {"unseen": np.array([value, value])} for name, value in unseen.items()}
    information = {ORDINARY: np.array([[0.1, 0.1], [0.3, 0.2], [0.4, 0.6], [0.2, 0.1]])}
    measured = mcmi_students._measured(config, found, unseen, information)
    measured = {id.removeprefix("distillation/mcmi-"): list(np.round(value, 6)) for id, value in measured.items()}
    assert measured == {
        "few-shot": [1.0, 0.0],
        "few-shot-crd": [-1.0, 0.0],
        "few-shot-extremes": [5.0, 0.0],
        "zero-shot": [5.0, 5.0],
        "zero-shot-temperature": [-1.0, -1.0],
        "zero-shot-fine-tuning": [-2.0, -2.0],
        "cmi-rises-with-temperature": [0.1, 0.1],
    }


def test_accuracy_on_one_class_only_counts_its_images():
    logits = jnp.asarray(np.eye(4)[[0, 1, 1, 2, 3, 0]], jnp.float32)
    labels = jnp.array([0, 1, 2, 2, 2, 2])
    assert float(accuracy_of(logits, labels, 2)) == 25.0
    assert float(accuracy_of(logits, labels, 1)) == 100.0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shares", (), "shares: got .*, expected at least one, ascending"),
        ("shares", (0.5, 1.0), "shares: got 1.0, expected between"),
        ("mcmi_weights", (0.0,), "mcmi_weights: got .*, expected at least one, all above 0"),
        ("controls", (), "controls: got .*, expected temperatures above 0"),
        ("temperature", -1.0, "temperature: got -1.0, expected temperatures above 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
