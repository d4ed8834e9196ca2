"""MCMI's teacher says more of an image than its class; a teacher of some rows learns from these alone."""

import jax
import numpy as np
import pytest

import kd
from experiments.distillation.digits import FitConfig, digit_parts
from experiments.distillation.teachers import mcmi_teachers, train_teachers


@pytest.mark.slow
def test_mcmi_raises_the_information_that_a_teacher_has_of_its_class():
    parts, short = digit_parts(), FitConfig(30)
    teachers, labels = train_teachers("mlp-12", parts, (0, 1), FitConfig(60)), parts.train.labels

    def information(some):
        return [
            float(kd.conditional_information(z, labels, kd.class_centroids(jax.nn.softmax(z), labels, 10)).mean())
            for z in some.train.logits
        ]

    tuned = mcmi_teachers(teachers, parts, (0, 1), short, weight=0.5)
    plain = mcmi_teachers(teachers, parts, (0, 1), short, weight=0.0)
    assert (np.array(information(tuned)) > np.array(information(plain))).all()


@pytest.mark.slow
def test_a_teacher_of_one_class_says_this_class():
    parts = digit_parts()
    rows = np.flatnonzero(parts.train.labels == 6)
    taught = train_teachers("mlp-8", parts, (3,), FitConfig(100, learning_rate=1e-2), rows=[rows])
    assert (np.asarray(taught.test.logits[0]).argmax(-1) == 6).all()
    assert [each.logits.shape for each in (taught.train, taught.validation, taught.test)] == [
        (1, len(part), 10) for part in parts[:3]
    ]
