"""The result that distils in the loop: what is compared, and what is refused."""

from dataclasses import replace

import pytest

from experiments.distillation import digits_run

CPU = digits_run.PRESETS["cpu"]


def test_the_student_is_compared_with_the_control_seed_by_seed():
    curves = {"ce": {"accuracy": [[10.0, 80.0], [10.0, 90.0]]}, "hinton": {"accuracy": [[9.0, 85.0], [9.0, 88.0]]}}
    found = digits_run._measured(CPU, curves, [0.0, 0.5])
    assert found == {"distillation/loop-over-labels": [5.0, -2.0], "distillation/loop-teacher-stays": [0.0, 0.5]}
    online = digits_run._measured(replace(CPU, objective="bd_kd_online", control=""), curves, [0.0, 0.5])
    assert online == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objective", "kl", "objective: got 'kl', expected one of"),
        ("objective", "mcmi", "objective: got 'mcmi', expected one whose teacher is trained on labels"),
        ("control", "hinton", "control: got 'hinton', the objective"),
        ("student", "mlp", "student: got 'mlp'"),
        ("temperature", 0.0, "temperature: got 0.0, expected above 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
