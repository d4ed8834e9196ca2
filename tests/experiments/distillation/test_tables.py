"""Intervals of students."""

import numpy as np

from experiments.distillation.tables import interval
from experiments.statistics import t_interval


def test_an_interval_of_what_is_not_finite_is_not_finite():
    assert np.isnan(interval([1.0, np.nan])).all()
    assert interval([2.5]) == (2.5, 2.5, 2.5)


def test_an_interval_is_students():
    values = [97.2, 96.1, 98.0]
    assert interval(values)[1:] == t_interval(values) and abs(interval(values)[0] - np.mean(values)) < 1e-12
