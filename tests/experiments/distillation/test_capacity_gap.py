"""What the claims of the capacity gap are made of."""

from dataclasses import replace

import pytest

from experiments.distillation import capacity_gap

CPU = capacity_gap.PRESETS["cpu"]


def test_the_widest_teacher_is_compared_with_the_base():
    values = {"hinton": (95, 93), "dist": (94, 94), "ab": (95, 92), "teacher": (96, 98)}
    found = {}
    for name, (base, widest) in values.items():
        found |= {(name, 64): {"accuracy": [base]}, (name, 1024): {"accuracy": [widest]}}
    measured = capacity_gap._measured(CPU, found)
    measured = {id.removeprefix("distillation/capacity-gap"): list(value) for id, value in measured.items()}
    assert measured == {"": [-2.0], "-less": [-1.0], "-teachers": [2.0]}


@pytest.mark.parametrize(("field", "value"), [("base", 1024), ("widths", (64, 0)), ("temperature", -1.0)])
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}: got"):
        replace(CPU, **{field: value})
