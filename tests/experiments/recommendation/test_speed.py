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


@pytest.mark.slow
def test_smoke_run(tmp_path):
    config = replace(speed.PRESETS["smoke"], models=speed.EPOCHS, scored=speed.SCORED)
    result = check_run(speed, config, tmp_path)
    assert result.tables["epochs"]["model"] == list(speed.EPOCHS)
    assert result.tables["scores"]["model"] == list(speed.SCORED)
