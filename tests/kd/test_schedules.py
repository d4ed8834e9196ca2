"""Schedules at their ends and between, and with an epoch that is not known when they are compiled."""

import jax
import numpy as np
import pytest

from kd.adaptive import taid_start, taid_update
from kd.policies import kdrl_beta
from kd.schedules import distillm_schedule, dkd_warmup, mdcs_weight, of_step, taid_schedule, temperature_anneal

SCHEDULES = [
    (dkd_warmup, (0, 5, 20, 100), (0, 0.25, 1, 1)),
    (mdcs_weight, (0, 10, 20, 300), (0, 0.3, 0.6, 0.6)),
    (kdrl_beta, (0, 40, 80, 280), (5e-3, 3e-3, 1e-3, 1e-3)),
    (lambda epoch: temperature_anneal(epoch, start=4.0, epochs=7), (0, 2, 6), (4, 3, 1)),
]


@pytest.mark.parametrize(("schedule", "epochs", "values"), SCHEDULES)
def test_values(schedule, epochs, values):
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(np.array(epochs)), values, rtol=1e-6)


@pytest.mark.slow
def test_one_loop_follows_them_all():
    """Compiled, with metrics of every kind: the states are those of the functions."""
    schedules = {"teacher": of_step(kdrl_beta), "target": taid_schedule(20, rate=0.1), "own": distillm_schedule()}
    losses = np.array([3.0, 2.0, 2.5, 1.0], np.float32)

    @jax.jit
    def update(states, metrics):
        return {name: schedule.update(states[name], metrics) for name, schedule in schedules.items()}

    states = {name: schedule.start for name, schedule in schedules.items()}
    taid = taid_start()
    for step, loss in enumerate(losses, 1):
        states = update(states, {"step": step, "loss": loss, "validation_loss": loss + 1, "accuracy": 0.5})
        taid = taid_update(taid, loss, step, steps=20, rate=0.1)
    values = {name: float(schedule.value(states[name])) for name, schedule in schedules.items()}
    np.testing.assert_allclose(values["teacher"], kdrl_beta(4), rtol=1e-6)
    np.testing.assert_allclose(values["target"], taid.interpolation, rtol=1e-6)
    assert values["own"] == 0
    untouched = update(states, {"accuracy": 0.5})
    jax.tree.map(np.testing.assert_array_equal, untouched, states)


@pytest.mark.parametrize("skipped", [np.nan, np.inf])
def test_taid_ignores_a_loss_that_is_not_finite(skipped):
    """It says nothing of the student; what follows is as if the update had not been made, but for the line."""

    def follow(losses):
        state = taid_start()
        for loss in losses:
            state = taid_update(state, loss, 0, steps=10, rate=0.1)
        return state

    straight, interrupted, begun = follow([3.0, 2.0]), follow([3.0, skipped, 2.0]), follow([skipped, 3.0, 2.0])
    for state in (interrupted, begun):
        assert (state.momentum, state.loss) == (straight.momentum, straight.loss) and straight.momentum > 0
        assert straight.interpolation < state.interpolation < 1
    assert taid_update(taid_start(), skipped, 5, steps=10).interpolation >= 0.7


def test_states_keep_their_types_in_float64():
    with jax.enable_x64(True):
        for schedule in (taid_schedule(9), distillm_schedule(), of_step(kdrl_beta)):
            metrics = {"step": np.arange(1, 4), "loss": np.linspace(3, 1, 3), "validation_loss": np.ones(3)}
            jax.lax.scan(lambda state, x, s=schedule: (s.update(state, x), s.value(state)), schedule.start, metrics)


def test_a_start_that_is_not_known_when_it_is_compiled():
    np.testing.assert_allclose(jax.jit(lambda start: kdrl_beta(10, start=start))(2e-3), 1.5e-3, rtol=1e-6)


def test_refused():
    with pytest.raises(ValueError, match="^epoch: got -1.0, expected a number of at least 0"):
        dkd_warmup(-1)
    with pytest.raises(ValueError, match="^epochs: got 1, expected an integer of at least 2"):
        temperature_anneal(0, start=4.0, epochs=1)
