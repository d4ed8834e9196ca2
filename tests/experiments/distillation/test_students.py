"""A student does not depend on who else is trained."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.distillation.digits import DigitsConfig, FitConfig
from experiments.distillation.objectives import OBJECTIVES
from experiments.distillation.students import prepared

CONFIG = DigitsConfig(seeds=(0, 1), teacher="mlp-12", student="mlp-5", teacher_fit=FitConfig(60), fit=FitConfig(30))


@pytest.fixture(scope="module")
def cohort():
    return prepared(CONFIG)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_students_do_not_depend_on_other_seeds_and_temperatures(cohort):
    teachers, students = cohort
    together = students.distil(OBJECTIVES["hinton"], teachers, (2.0, 8.0))["test"]
    alone_teachers, alone = prepared(replace(CONFIG, seeds=(1,)))
    np.testing.assert_array_equal(alone_teachers.test.logits[0], teachers.test.logits[1])
    found = alone.distil(OBJECTIVES["hinton"], alone_teachers, (8.0,))["test"]
    for name, values in found.items():
        np.testing.assert_allclose(values[0, 0], together[name][1, 1], rtol=1e-5, err_msg=name)  # of another program
    assert together["entropy"][0, 1] != together["entropy"][1, 1] != together["entropy"][1, 0]
    assert np.array_equal(together["teacher accuracy"][0], together["teacher accuracy"][1])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_models_computed_together_are_those_computed_one_by_one(cohort):
    teachers, students = cohort
    one = students.distil(OBJECTIVES["crd"], teachers, (1.0,))["validation"]
    two = replace(students, at_once=2).distil(OBJECTIVES["crd"], teachers, (1.0,))["validation"]
    np.testing.assert_allclose(one["entropy"], two["entropy"], rtol=1e-4)
