"""DistiLLM's schedule in a training: the traces replayed by its rule, and what claims compare."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import kd
from experiments.distillation import own_sequences_schedule
from experiments.distillation.chains import dirichlet_teacher
from experiments.distillation.own_sequences_schedule import LAST, LINE, RELEASED, SCHEDULES, compared, drawn, trained
from tests.experiments.result_run import check_run

SMOKE = own_sequences_schedule.PRESETS["smoke"]


@pytest.mark.slow
def test_traces_follow_the_rule():
    config = replace(SMOKE, steps=200, every=4, tuning=20, rate=0.3)
    teacher = jax.tree.map(np.float32, dirichlet_teacher(2, symbols=3))
    data = [np.float32(x) for x in drawn(config, 2, 3, teacher)]
    every = jax.jit(jax.vmap(lambda which: trained(config, teacher, *data, which)))
    found = {name: np.asarray(x) for name, x in every(np.arange(len(SCHEDULES))).items()}
    assert set(found["share"][0]) == {0} and set(found["share"][1]) == {1}
    np.testing.assert_allclose(found["share"][SCHEDULES.index(LINE)], np.arange(200) / 200, rtol=1e-6)
    np.testing.assert_allclose(found["loss"][:, 0], found["loss"][0, 0], rtol=1e-6)
    for name in (RELEASED, LAST):
        place, state = SCHEDULES.index(name), kd.distillm_start()
        for step in range(0, 200, 4):
            state = kd.distillm_update(state, found["loss"][place, step])
            if name == LAST:
                state = state._replace(loss=found["loss"][place, step])
            np.testing.assert_allclose(found["share"][place, step : step + 4], state.fraction, atol=1e-6)
    assert found["share"][SCHEDULES.index(RELEASED), -1] > 0


def test_data_are_the_teachers():
    teacher = dirichlet_teacher(2, symbols=3, concentration=1.0)
    contexts, followed = drawn(replace(SMOKE, length=50), 1, 400, teacher)
    np.testing.assert_allclose(followed.sum(1), contexts)
    np.testing.assert_allclose(followed / contexts[:, None], np.exp(teacher.log_p), atol=0.05)


def test_what_is_compared():
    shape = 2, len(SMOKE.sequences), len(SCHEDULES)
    found = {"share": np.zeros((*shape, 3)), "loss": np.ones((*shape, 3)), "end": np.zeros(shape)}
    place = SCHEDULES.index(RELEASED)
    found["share"][:, 0, place] = [0.0, 0.1, 0.1]
    found["loss"][0, 0, place] = [1.0, 1.2, 1.0]
    found["end"][:, 0] = np.arange(len(SCHEDULES))
    got = {name: x.tolist() for name, x in compared(SMOKE, found).items()}
    assert got["adaptive-schedule"] == [0, 1]
    assert got["schedule-starts"] == [0.1, 0.1] and got["schedule-follows-data"] == [-0.1, -0.1]
    assert got["schedule-over-none"] == [3, 3] and got["schedule-over-all"] == [2, 2]


def test_smoke_run(tmp_path):
    check_run(own_sequences_schedule, SMOKE, tmp_path)
