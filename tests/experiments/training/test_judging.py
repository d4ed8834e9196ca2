"""What the loop makes of values: not finite, best, no progress, not there."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.training.loop import train
from experiments.training.preemption import Preempted
from experiments.training.task import Task
from tests.experiments.training.toy import STEPS, allowing, config, poisoned, regression, rows, saved, signalled


def test_updates_that_are_not_finite_are_skipped_counted_and_named(tmp_path):
    outcome = train(config(max_skipped=3), *poisoned(6, 8), tmp_path, seed=5)
    assert outcome.train["skipped"].tolist() == [0] * 5 + [1, 2] + [3] * 6
    assert np.isfinite(outcome.params["kernel"]).all() and np.isnan(outcome.train["loss"][5:8]).all()
    skipped = [row for row in rows(tmp_path) if row["split"] == "skipped"]
    assert [(row["step"], row["first_example"], row["examples"]) for row in skipped] == [
        (6, 40, 8),
        (7, 48, 8),
        (8, 56, 8),
    ]
    assert {row["leaf"] for row in skipped} == {"loss"}


@pytest.mark.slow
@pytest.mark.parametrize("last", [9, 13])
def test_too_many_in_a_row_end_the_training_before_anything_is_lost(tmp_path, last):
    first = last - 3
    with pytest.raises(
        UserError, match=rf"4 updates in a row were not finite \(loss\), the last of them update {last}"
    ):
        train(config(max_skipped=3, save_every=2), *poisoned(first, last), tmp_path, seed=5)
    told = json.loads((tmp_path / "not_finite.json").read_text())
    assert told["updates"] == [first, last] and told["leaf"] == "loss"
    assert (told["first_example"], told["examples"]) == ((first - 1) * 8, 32)
    assert told["rows"] == list(range((first - 1) * 8, last * 8))
    assert saved(tmp_path)[-1] == min(last + 1, STEPS)
    with pytest.raises(UserError, match="updates in a row were not finite"):  # it does not end well by itself
        train(config(max_skipped=3, save_every=2), *poisoned(first, STEPS), tmp_path / "again", seed=5)
    # The state that is left is finite, and other data go on from it; at its end only another limit helps.
    with allowing("data"):
        outcome = train(config(max_skipped=3 + (last == STEPS), save_every=2), *poisoned(60, 50), tmp_path, seed=5)
    assert np.isfinite(jax.tree.leaves(outcome.params)[0]).all() and outcome.train["step"][-1] == STEPS
    assert not (tmp_path / "not_finite.json").exists()


def test_rows_of_columns_are_named_as_they_are_in_the_columns(tmp_path):
    task, _ = regression()
    columns = {"x": np.ones((40, 3), np.float32), "y": np.where(np.arange(40) == 17, np.nan, 1).astype(np.float32)}
    with pytest.raises(UserError, match="1 updates in a row"):
        train(config(max_skipped=0), task, columns, tmp_path, seed=5)
    told = json.loads((tmp_path / "not_finite.json").read_text())
    assert 17 in told["rows"] and len(told["rows"]) == 8


@pytest.mark.slow
def test_the_best_the_latest_and_the_permanent_states_are_kept(tmp_path):
    task, data = regression()
    losses = iter([5.0, 4.0, 1.0, 2.0, 3.0, float("nan"), 2.0])
    judged = Task(task.init, task.loss, lambda params: {"score": next(losses)})
    kept = {"best": "score", "permanent_every": 4, "keep": 1}
    train(config(eval_every=2, save_every=4, steps=12, checkpoint=kept), judged, data, tmp_path, seed=5)
    assert saved(tmp_path) == [0, 4, 8, 12]  # 0 was the best so far, and is permanent; 4 is the best
    losses = iter([5.0, 4.0, 9.0, 2.0, 3.0, float("nan"), 2.0])
    again = config(eval_every=2, save_every=4, steps=12, checkpoint=kept)
    outcome = train(again, judged, data, tmp_path / "other", seed=5)
    assert saved(tmp_path / "other") == [0, 4, 6, 8, 12]
    assert outcome.best_step == 6


def test_a_training_without_progress_stops_early_and_stays_stopped(tmp_path):
    task, data = regression()
    losses = iter([5.0, 4.0, 4.5, 4.0, 1.0])
    judged = Task(task.init, task.loss, lambda params: {"score": next(losses)})
    stopping = config(eval_every=2, stop_metric="score", patience=2)
    outcome = train(stopping, judged, data, tmp_path, seed=5)
    assert outcome.train["step"][-1] == 6 and saved(tmp_path)[-1] == 6
    again = train(stopping, judged, data, tmp_path, seed=5)
    chex.assert_trees_all_equal(again.state, outcome.state)
    assert next(losses) == 1.0


def test_a_training_stops_where_a_metric_is_good_enough_and_stays_stopped(tmp_path):
    task, data = regression()
    losses = iter([5.0, float("nan"), 1.5, 1.0, 0.5, 7.0])
    judged = Task(task.init, task.loss, lambda params: {"score": next(losses)})
    stopping = config(eval_every=2, stop_metric="score", stop_at=1.0, patience=9)
    outcome = train(stopping, judged, data, tmp_path, seed=5)
    assert outcome.evaluation["score"][2:].tolist() == [1.5, 1.0] and saved(tmp_path)[-1] == 6
    again = train(stopping, judged, data, tmp_path, seed=5)
    chex.assert_trees_all_equal(again.state, outcome.state)
    assert next(losses) == 0.5


def test_not_a_number_is_no_progress(tmp_path):
    task, data = regression()
    losses = iter([float("nan"), 3.0, 2.0, float("nan"), 5.0, 1.0])
    judged = Task(task.init, task.loss, lambda params: {"score": next(losses)})
    outcome = train(config(eval_every=1, stop_metric="score", patience=2), judged, data, tmp_path, seed=5)
    assert outcome.evaluation["step"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_the_best_is_of_one_metric_and_survives_a_preemption_at_its_step(tmp_path, monkeypatch):
    task, data = regression()
    losses = iter([5.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    judged = Task(task.init, task.loss, lambda params: {"score": next(losses), "other": 0.0})
    settings = {"eval_every": 3, "save_every": 2}
    kept = {"best": "score", "keep": 1}
    signalled(monkeypatch, 2)
    with pytest.raises(Preempted):
        train(config(checkpoint=kept, **settings), judged, data, tmp_path, seed=5)
    monkeypatch.undo()
    outcome = train(config(checkpoint=kept, **settings), judged, data, tmp_path, seed=5)
    assert outcome.best_step == 3 and saved(tmp_path) == [3, 13]
    assert outcome.evaluation["score"].tolist() == [5, 1, 2, 3, 4, 4]


def test_something_to_judge_needs_an_evaluation(tmp_path):
    task, data = regression(evaluate=False)
    with pytest.raises(UserError, match="'loss' shall be judged, and the task has nothing to evaluate"):
        train(config(stop_metric="loss"), task, data, tmp_path, seed=5)


@pytest.mark.parametrize("name", ["step", "split"])
def test_names_of_the_log_are_refused(tmp_path, name):
    task, data = regression(evaluate=False)
    with pytest.raises(ValueError, match=f"metric {name}: the name is taken by the log"):
        train(config(), Task(task.init, task.loss, lambda params: {name: 1.0}), data, tmp_path, seed=5)


def test_a_metric_that_is_not_evaluated_is_named(tmp_path):
    for name, settings in (("stop_metric", {"stop_metric": "x"}), ("checkpoint.best", {"checkpoint": {"best": "x"}})):
        with pytest.raises(UserError, match=f"train.{name}: got 'x', expected a metric of the evaluation: first"):
            train(config(**settings), *regression(), tmp_path / name, seed=5)


def test_a_metric_that_is_no_scalar_is_named(tmp_path):
    task, data = regression(evaluate=False)
    vector = Task(task.init, lambda p, b, k: (task.loss(p, b, k)[0], {"wide": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"metric wide: got shape \(2,\), expected a scalar"):
        train(config(), vector, data, tmp_path, seed=5)
