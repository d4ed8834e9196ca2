"""Teacher and student trained together: both learn, and what is compared."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.distillation import online
from experiments.distillation.digits import DigitsConfig, FitConfig
from experiments.distillation.networks import network
from experiments.distillation.objectives import OBJECTIVES
from experiments.distillation.students import prepared

CPU = online.PRESETS["cpu"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_both_networks_learn_from_their_labels_and_a_student_alone_is_the_one_of_cross_entropy():
    """Where the other network does not matter, a student online is the one that learns from labels."""
    config = DigitsConfig(seeds=(0, 1), teacher="mlp-12", student="mlp-8", fit=FitConfig(400), teacher_fit=FitConfig(2))
    teachers, students = prepared(config)
    labels_only = replace(OBJECTIVES["ce"], joint=True)
    found = students.online(labels_only, network("mlp-12"), (1.0,))["test"]
    alone = students.distil(OBJECTIVES["ce"], teachers, (1.0,))["test"]
    np.testing.assert_allclose(found["entropy"], alone["entropy"], rtol=1e-4)
    both = students.online(OBJECTIVES["bd_kd_online"], network("mlp-12"), (2.0,))["test"]
    assert (both["accuracy"] > 60).all() and (both["teacher accuracy"] > 60).all()
    assert (found["teacher accuracy"] < 40).all()


def test_claims_are_against_the_best_of_the_others():
    values = {"ce": (90, 0.03), "hinton": (94, 0.02), "mutual": (93, 0.01)}
    values |= {"BD-KD, delta 1": (95, 0.5), "BD-KD, delta 3": (96, 0.015)}
    found = {name: {"accuracy": [a, a], "calibration error": np.array([e, e])} for name, (a, e) in values.items()}
    measured = {id.removeprefix("distillation/bdkd-"): x for id, x in online._measured(found).items()}
    assert list(measured["better-accuracy"]) == [2, 2] and list(measured["delta-sweep"]) == [1, 1]
    np.testing.assert_allclose(measured["better-calibration"], -0.005)


@pytest.mark.parametrize(("field", "value"), [("deltas", (3.0,)), ("deltas", (1.0, 3.0, 0.0)), ("temperatures", ())])
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}: got"):
        replace(CPU, **{field: value})
