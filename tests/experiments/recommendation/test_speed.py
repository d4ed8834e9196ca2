"""Seconds per epoch: an epoch has an update for every batch of users, and a ratio is taken within a repetition."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.recommendation import speed
from tests.experiments.result_run import check_run


def test_ratios_are_within_a_repetition():
    names = [name for _ in range(2) for name in speed.EPOCHS]
    found = speed._measured({"model": names, "cpu_seconds": [2.0, 70.0, 30.0, 4.0, 90.0, 20.0]})
    values = {id.removeprefix("recommendation/"): x for id, x in found.items()}
    assert values["sasrec-efficiency"] == [15.0, 5.0] and values["sasrec-epoch"] == [2.0, 4.0]
    assert values["sasrec-epoch-all-items"] == [70.0, 90.0]


def test_the_sessions_have_the_size_of_movielens():
    sessions = speed.PRESETS["cpu"].sessions
    lengths = sessions.shortest + np.arange(sessions.users) % (sessions.longest - sessions.shortest + 1)
    assert (sessions.users, sessions.items) == (6000, 3400) and 155 < lengths.mean() < 175


def test_an_epoch_meets_every_user(monkeypatch):
    """With five users in batches of two, the third batch is filled up with somebody's second turn."""
    met = []

    def update_program(task, optimizer, batches):
        return lambda: met.append(next(batches)["rows"].tolist())

    monkeypatch.setattr("experiments.step_time.update_program", update_program)
    monkeypatch.setattr(speed, "task_of", lambda *_: None)
    config = speed.Config(sessions=speed.Generated(users=5, items=4), batch=2)
    programs = speed.epoch_programs(config, None)
    programs[speed.SASREC]()
    assert [len(rows) for rows in met] == [2, 2, 2] and {row for rows in met for row in rows} == set(range(5))


def test_scores_are_timed_per_user(monkeypatch, tmp_path):
    from experiments.scan_benchmark.measure import Seconds

    monkeypatch.setattr("experiments.scan_benchmark.measure.clocked", lambda call: (Seconds(3.0, 5.0), call()))
    for programs in ("epoch_programs", "score_programs"):
        monkeypatch.setattr(speed, programs, lambda *_: {speed.SASREC: lambda: None})
    tables = speed.run(replace(speed.PRESETS["smoke"], batch=4), tmp_path).tables
    assert tables["scores"]["cpu_ms_per_user"] == [750.0]
    assert tables["epochs"]["cpu_seconds"] == [3.0] and tables["epochs"]["wall_seconds"] == [5.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", speed.EPOCHS)
def test_an_epoch_has_the_model_and_the_loss_of_its_name(name):
    """On a history that fills the window and on one that does not, whose places behind the last item do not count."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.baselines.recommenders import hidden_states, items_mask
    from experiments.recommendation.data import drawn

    config, key = speed.PRESETS["smoke"], jax.random.key(1)
    _, sessions = drawn(replace(config.sessions, shortest=5, longest=8), 0)  # trained on: 2, 3, 4 and 5 items
    task = speed.task_of(config, sessions, name)
    params = nn.unbox(task.init(jax.random.key(0)))
    found, _ = task.loss(params, {"rows": jnp.array([3, 0])}, key)
    start, stop = sessions.trained(config.window)
    places = [np.arange(start[row], stop[row]) for row in (3, 0)]
    right = np.concatenate([sessions.items[own + 1] for own in places])
    history = np.stack([np.pad(sessions.items[own], (0, config.window - len(own))) for own in places])
    # the same random numbers, so that the same is dropped
    model = speed._model(config, name)
    mask = items_mask(model, jnp.array([len(own) for own in places]), config.window)
    h, W = hidden_states(model, params, jnp.asarray(history), mask=mask, rngs={"dropout": key})
    others = np.asarray(jax.random.randint(key, history.shape, 0, len(W)))
    states, other = (np.concatenate([x[i, : len(own)] for i, own in enumerate(places)]) for x in (h, others))
    scores, at = states @ np.asarray(W).T, np.arange(len(right))
    if name == speed.SASREC_ALL:
        expected = optax.softmax_cross_entropy_with_integer_labels(scores, right).mean()
    else:
        expected = np.mean(np.logaddexp(0, -scores[at, right]) + np.logaddexp(0, scores[at, other]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    config = replace(speed.PRESETS["smoke"], models=speed.EPOCHS, scored=speed.SCORED)
    result = check_run(speed, config, tmp_path)
    assert result.tables["epochs"]["model"] == list(speed.EPOCHS)
    assert result.tables["scores"]["model"] == list(speed.SCORED)
