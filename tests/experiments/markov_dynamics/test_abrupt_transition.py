"""The abrupt transition: the smoke run, what counts as slow phase and jump, refusals."""

import numpy as np
import pytest

from experiments.markov_dynamics import abrupt_transition
from experiments.markov_dynamics.abrupt_transition import PRESETS, Config, measure
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run(tmp_path):
    result = check_run(abrupt_transition, PRESETS["smoke"], tmp_path)
    curve = result.series["training"]
    assert curve["in_context"].shape == (2, 3)
    assert all(((values >= 0) & (values <= 1)).all() for name, values in curve.items() if name != "step")
    # What is right is in the context.
    assert (curve["in_context"] <= curve["context_label"]).all()


def test_slow_phases_and_jumps_are_read_off_the_curves():
    step = np.arange(0, 600, 100)
    metrics = {
        "in_context": np.array([[0.1, 0.2, 0.3, 0.96, 0.4, 0.99], [0.1, 0.2, 0.3, 0.3, 0.3, 0.3], [0.99] * 6]),
        "context_label": np.array([[0.1, 0.96, 0.97, 1, 1, 1], [0.1, 0.5, 0.9, 0.94, 0.95, 0.96], [1.0] * 6]),
        "label_to_item": np.array([[0.1, 0.1, 0.2, 0.7, 0.7, 0.9], [0.1] * 6, [0.9] * 6]),
    }
    found = measure(step, metrics)
    assert found["markov_dynamics/R1-abrupt-transition"] == [300.0, 100.0, 0.0]
    assert found["markov_dynamics/R1-learnt-in-context"] == [0.99, 0.3, 0.99]
    # The first jump counts; where nothing is learnt, or from the start, there is none.
    np.testing.assert_allclose(found["markov_dynamics/R1-induction-measure-jumps"], [0.5, 0, 0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", 10, "labels: got 10, expected a divisor of classes = 512"),
        ("pairs", 1, "pairs: got 1"),
        ("hidden", 0, "hidden: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
