"""The table of objectives: how temperatures are chosen, its claims, and two updates of its gpu preset."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.distillation import digits_table
from experiments.distillation.digits import FitConfig
from experiments.distillation.networks import network

CPU, GPU = digits_table.PRESETS["cpu"], digits_table.PRESETS["gpu"]


def test_orderings_are_taken_seed_by_seed_against_the_best_of_the_others():
    at = {"ce": [90, 90], "hinton": [95, 97], "dist": [96, 93], "pld": [95, 98], "dkd": [96, 96], "sinkd": [95, 96]}
    found = digits_table._measured({name: np.array(values, float) for name, values in at.items()})
    found = {id.removeprefix("distillation/"): list(values) for id, values in found.items()}
    assert found == {
        "hinton-kd-beats-ce": [5.0, 7.0],
        "dist-digits": [1.0, -4.0],
        "sinkd-digits": [0.0, -1.0],
        "pld-digits": [-1.0, 1.0],
        "dkd-digits": [1.0, -1.0],
    }


def test_temperatures_are_chosen_with_seeds_that_are_not_reported(tmp_path, monkeypatch):
    from experiments.distillation import students

    def measured(self, objective, teachers, temperatures):
        shape = (len(temperatures), len(self.seeds))
        tuning = np.array(self.seeds) >= 10**6
        # those who choose are right most often at the first, the reported ones at the last
        value = np.where(tuning, -1.0, 1.0) * np.arange(len(temperatures))[:, None]
        names = [*digits_table.CELLS, *(f"teacher {cell}" for cell in digits_table.CELLS)]
        return {part: {name: np.broadcast_to(value, shape) for name in names} for part in ("validation", "test")}

    monkeypatch.setattr(students.Students, "distil", measured)
    small = {"seeds": (4, 2), "objectives": ("hinton",), "tuned_with": 3, "teacher": "mlp-2", "at_once": 5}
    result = digits_table.run(replace(CPU, **small, teacher_fit=FitConfig(1)), tmp_path)
    assert result.tables["cells"]["temperature"][0] == 1.0
    assert result.series["hinton"]["accuracy"].tolist() == [[t, t] for t in (0.0, 1.0, 2.0, 3.0, 4.0)]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_gpu_preset(tmp_path):
    short = {"seeds": (0, 1), "tuned_with": 1, "at_once": 3, "temperatures": (1.0, 4.0), "objectives": ("ce", "mcmi")}
    assert short["at_once"] < GPU.at_once and set(short["objectives"]) <= set(GPU.objectives)
    two = FitConfig(steps=2, batch_size=GPU.fit.batch_size)
    config = replace(GPU, **short, teacher_fit=two, mcmi_fit=two, fit=two)
    result = digits_table.run(config, tmp_path)
    cells = result.tables["cells"]
    assert cells["student"] == ["ce", "mcmi", "the teacher (cross-entropy)", "the teacher (mcmi)"]
    assert all(np.isfinite(cells[cell]).all() for cell in digits_table.CELLS)


def test_the_gpu_preset_has_the_size_that_it_had_when_its_minutes_were_estimated():
    import jax
    import jax.numpy as jnp

    def parameters(name):
        shapes = jax.eval_shape(network(name).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert [parameters(name) for name in (GPU.teacher, GPU.student)] == [1_126_410, 8_970]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objectives", ("kl",), "objectives: got 'kl', expected one of"),
        ("objectives", ("bd_kd_online",), "objectives: got 'bd_kd_online', expected one with a teacher that stays"),
        ("temperatures", (0.0, 1.0), "temperatures: got"),
        ("teacher", "resnet", "teacher: got 'resnet'"),
        ("seeds", (10**6,), "seeds: got 1000000, expected below"),
        ("images", 5, "images: got 5"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
