"""Where a training starts: its own checkpoint, another's, weights alone; and what it refuses to continue."""

import chex
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.training.loop import train
from experiments.training.preemption import Preempted
from experiments.training.start import origin
from experiments.training.task import Task
from tests.experiments.training.toy import STEPS, allowing, config, regression, signalled


def test_a_folder_of_another_seed_is_refused(tmp_path):
    train(config(steps=4), *regression(), tmp_path, seed=5)
    with pytest.raises(UserError, match="holds a training of seed 5, not 6"):
        train(config(steps=4), *regression(), tmp_path, seed=6)


@pytest.mark.slow
def test_other_settings_are_refused_unless_they_are_allowed(tmp_path, capsys):
    first = train(config(steps=6), *regression(), tmp_path, seed=5)
    with pytest.raises(UserError, match="steps was 6 and is now 9; allow it with --allow_mismatch steps"):
        train(config(steps=9), *regression(), tmp_path, seed=5)
    with allowing("train.steps"):
        longer = train(config(steps=9), *regression(), tmp_path, seed=5)
        assert "steps was 6 and is now 9, as allowed" in capsys.readouterr().err
        np.testing.assert_array_equal(longer.train["loss"][:6], first.train["loss"])
        assert longer.train["step"].tolist() == list(range(1, 10))
        with pytest.raises(UserError, match="is at step 9 already, beyond the 4 steps asked for"):
            train(config(steps=4), *regression(), tmp_path, seed=5)


def test_where_and_how_often_may_change_without_asking(tmp_path):
    train(config(steps=6), *regression(), tmp_path, seed=5)
    again = config(steps=6, save_every=1, eval_every=1, device_batch=2, workers=1, max_skipped=3)
    assert train(again, *regression(), tmp_path, seed=5).train["step"].tolist() == list(range(1, 7))


def test_other_data_are_refused_unless_they_are_allowed(tmp_path):
    task, _ = regression(evaluate=False)
    columns = {"x": np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32), "y": np.zeros(9, np.float32)}
    train(config(steps=2), task, columns, tmp_path, seed=0)
    columns["y"][7] = 1
    with pytest.raises(UserError, match="data was '.*' and is now '.*'; allow it with --allow_mismatch data"):
        train(config(steps=2), task, columns, tmp_path, seed=0)
    with allowing("data"):
        train(config(steps=2), task, columns, tmp_path, seed=0)


@pytest.mark.slow
def test_metrics_that_are_gone_are_missed(tmp_path, monkeypatch, capsys):
    signalled(monkeypatch, 7)
    with pytest.raises(Preempted):
        train(config(), *regression(), tmp_path, seed=5)
    monkeypatch.undo()
    (tmp_path / "metrics.jsonl").unlink()
    capsys.readouterr()
    outcome = train(config(), *regression(), tmp_path, seed=5, label="toy")
    assert "warning: toy: the metrics of 7 updates are gone; the training itself is whole" in capsys.readouterr().err
    assert outcome.train["step"].tolist() == list(range(8, STEPS + 1))


@pytest.mark.slow
def test_what_was_taken_over_is_judged_once(tmp_path):
    task, data = regression()
    asked = []

    def evaluate(params):
        asked.append(len(asked))
        return {"score": 10.0 - len(asked)}

    judged = Task(task.init, task.loss, evaluate)
    stopping = config(stop_metric="score", patience=1, checkpoint={"best": "score", "keep": 9})
    train(stopping, judged, data, tmp_path / "a", seed=5)
    with origin(resume_from=tmp_path / "a" / "checkpoints" / "4"):
        outcome = train(stopping, judged, data, tmp_path / "b", seed=5)
    assert outcome.train["step"][-1] == STEPS and outcome.best_step == STEPS


@pytest.mark.slow
def test_own_checkpoint_then_resume_from_then_init_from_then_scratch(tmp_path, capsys, monkeypatch):
    expected = train(config(), *regression(), tmp_path / "undisturbed", seed=5)
    signalled(monkeypatch, 7)
    with pytest.raises(Preempted):
        train(config(), *regression(), tmp_path / "source" / "a", seed=5)
    monkeypatch.undo()
    source, there = tmp_path / "source", tmp_path / "new"
    with origin(resume_from=source, init_from=source, run_dir=there):
        outcome = train(config(), *regression(), there / "a", seed=5)
    assert "going on from" in capsys.readouterr().err
    chex.assert_trees_all_equal(outcome.state, expected.state)
    assert outcome.train["step"].tolist() == list(range(9, STEPS + 1))  # its history before is in the other folder
    with origin(resume_from=tmp_path / "nowhere"):
        again = train(config(), *regression(), there / "a", seed=5)  # its own checkpoint comes first
    chex.assert_trees_all_equal(again.params, expected.params)
    with pytest.raises(UserError, match="no checkpoints in .*nowhere"), origin(resume_from=tmp_path / "nowhere"):
        train(config(), *regression(), tmp_path / "elsewhere", seed=5)


@pytest.mark.slow
def test_init_from_takes_the_weights_alone(tmp_path):
    source = train(config(steps=8, ema_decay=0.5), *regression(), tmp_path / "a", seed=5)
    task, data = regression()
    seen = []
    first = Task(task.init, task.loss, lambda params: seen.append(np.asarray(params["kernel"])) or {"x": 0.0})
    with origin(init_from=tmp_path / "a" / "checkpoints" / "8"):
        outcome = train(config(), first, data, tmp_path / "b", seed=6)
    np.testing.assert_array_equal(seen[0], source.state.ema["kernel"])
    assert outcome.train["step"].tolist() == list(range(1, STEPS + 1))
