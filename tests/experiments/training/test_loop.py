"""The loop: its order, and that an interrupted training ends where an undisturbed one does."""

import json
import os
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from experiments import runs
from experiments.errors import UserError
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from experiments.training.data import DeviceBatches, examples
from experiments.training.loop import Loop, train
from experiments.training.mesh import AXES
from experiments.training.metrics import MetricsLog
from experiments.training.preemption import Preempted
from experiments.training.start import Position, origin
from experiments.training.task import Task
from experiments.training.update import Report, TrainState

STEPS = 13


def regression(evaluate=True):
    """Noisy linear regression; the noise tests that the keys of the steps survive a restart."""
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 3)).astype(np.float32)
    columns = {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32)}

    def loss(params, batch, key):
        error = batch["x"] @ params["kernel"] - batch["y"] + 0.1 * jax.random.normal(key, batch["y"].shape)
        return jnp.mean(error**2), {"error": jnp.abs(error).max()}

    task = Task(
        init=lambda key: {"kernel": jax.random.normal(key, (3,))},
        loss=loss,
        evaluate=(lambda params: {"first": params["kernel"][0]}) if evaluate else None,
    )
    return task, examples(columns, seed=3)


def config(steps=STEPS, save_every=4, eval_every=3, checkpoint=None, **settings):
    """A short training with a rate that depends on the step."""
    optimizer = OptimizerConfig(learning_rate=0.1, clip_norm=1.0)
    checkpoint = CheckpointConfig(every=save_every, **(checkpoint or {}))
    return TrainConfig(
        steps=steps, batch_size=8, eval_every=eval_every, checkpoint=checkpoint, optimizer=optimizer, **settings
    )


class Interrupted(Exception):
    """Raised in place of a kill."""


def recorded(calls, **settings):
    """A loop whose parts write down when they are called."""

    def record(name, value=None):
        def call(*arguments, **_):
            calls.append(name)
            return value

        return call

    class Batches:
        __next__ = record("batch", 0)
        position = 0

    log = SimpleNamespace(write=lambda step, split, values: calls.append(f"log {split} {step}"), sync=record("sync"))
    return Loop(
        TrainConfig(steps=2, eval_every=1, checkpoint=CheckpointConfig(every=1)),
        record("evaluate", {}),
        record("step", (EMPTY, Report({"loss": 1.0}, -1, 0))),
        Batches(),
        SimpleNamespace(save=record("save"), check=record("check")),
        log,
        SimpleNamespace(advance=record("advance")),
        **settings,
    )


EMPTY = TrainState(*(jnp.zeros(()) for _ in range(7)))._replace(params={}, collections={}, ema={})


def test_order_is_evaluate_save_batch_step_log():
    calls = []
    recorded(calls).run(Position(EMPTY))
    first = ["evaluate", "log eval 0", "batch", "step", "check"]
    second = ["evaluate", "log eval 1", "sync", "save", "batch", "step", "log train 1", "advance", "check"]
    last = ["evaluate", "log eval 2", "sync", "save", "log train 2", "advance"]
    assert calls == first + second + last


def test_a_loop_asked_to_leave_saves_at_once_and_evaluates_when_it_goes_on():
    calls, position = [], Position(EMPTY)
    with pytest.raises(Preempted) as stop:
        recorded(calls, leave=lambda step: step == 1).run(position)
    assert calls[-3:] == ["check", "sync", "save"] and not position.evaluated
    assert (stop.value.code, stop.value.step) == (75, 1)
    calls.clear()
    recorded(calls).run(position)
    assert calls[:5] == ["evaluate", "log eval 1", "batch", "step", "log train 1"]


def rows(folder):
    """The rows of the metrics file."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(config(), *regression(), folder, seed=5), rows(folder)


@pytest.mark.parametrize("interruption", [2, 4, 5, 11])
def test_an_interrupted_training_ends_bit_for_bit_like_an_undisturbed_one(
    undisturbed, tmp_path, monkeypatch, interruption
):
    expected, expected_rows = undisturbed
    read, count = DeviceBatches.__next__, iter(range(interruption))

    def stop(self):
        if next(count, None) is None:
            raise Interrupted
        return read(self)

    monkeypatch.setattr(DeviceBatches, "__next__", stop)
    with pytest.raises(Interrupted):
        train(config(), *regression(), tmp_path, seed=5)
    monkeypatch.undo()
    outcome = train(config(), *regression(), tmp_path, seed=5)
    chex.assert_trees_all_equal(outcome.params, expected.params)
    chex.assert_trees_all_equal(outcome.train, expected.train)
    chex.assert_trees_all_equal(outcome.evaluation, expected.evaluation)
    by_step = sorted(rows(tmp_path), key=lambda row: (row["split"], row["step"]))
    assert by_step == sorted(expected_rows, key=lambda row: (row["split"], row["step"]))


def test_each_update_and_evaluation_is_in_the_metrics_once(undisturbed):
    outcome, written = undisturbed
    assert [row["step"] for row in written if row["split"] == "train"] == list(range(1, STEPS + 1))
    assert [row["step"] for row in written if row["split"] == "eval"] == [0, 3, 6, 9, 12, 13]
    assert set(outcome.train) == {"step", "loss", "error", "gradient_norm", "skipped"}


def test_a_finished_training_is_returned_without_training(undisturbed, tmp_path):
    expected, _ = undisturbed
    task, data = regression()
    train(config(), task, data, tmp_path, seed=5)
    before = (tmp_path / "metrics.jsonl").read_text()

    def never(*_):
        raise AssertionError("trained again")

    again = train(config(), Task(task.init, never, never), data, tmp_path, seed=5)
    chex.assert_trees_all_equal(again.params, expected.params)
    chex.assert_trees_all_equal(again.train, expected.train)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_seeds_decide_everything(undisturbed, tmp_path):
    expected, _ = undisturbed
    chex.assert_trees_all_equal(train(config(), *regression(), tmp_path / "same", seed=5).params, expected.params)
    other = train(config(), *regression(), tmp_path / "other", seed=6).params
    assert not np.array_equal(other["kernel"], expected.params["kernel"])


def test_a_half_written_last_line_of_the_metrics_is_dropped(undisturbed, tmp_path):
    expected, _ = undisturbed
    train(config(steps=8), *regression(), tmp_path, seed=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "split": "tr')
    with allowing("steps"):
        outcome = train(config(), *regression(), tmp_path, seed=5)
    assert len(rows(tmp_path)) == len(outcome.train["step"]) + len(outcome.evaluation["step"])
    assert outcome.train["step"].tolist() == expected.train["step"].tolist()


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.training.loop.make_mesh", lambda _: AbstractMesh((3, 1, 1, 1), AXES))
    with pytest.raises(UserError, match=r"train\.batch_size: got 8, expected a multiple of 3"):
        train(config(), *regression(), tmp_path, seed=5)


def test_columns_by_name_are_enough(tmp_path):
    task, _ = regression(evaluate=False)
    x = np.random.default_rng(0).standard_normal((9, 3)).tolist()
    outcome = train(config(steps=2), task, {"x": x, "y": [0.0] * 9}, str(tmp_path), seed=0)
    assert np.isfinite(outcome.train["loss"]).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "data: got list"),
        (grain.MapDataset.source([{"x": np.ones(3), "y": np.float32(1)}] * 8), "the data ended before the last step"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(tmp_path, data, message):
    task, _ = regression()
    with pytest.raises(UserError, match=message):
        train(config(), task, data, tmp_path, seed=0)


def test_a_folder_of_another_seed_is_refused(tmp_path):
    train(config(steps=4), *regression(), tmp_path, seed=5)
    with pytest.raises(UserError, match="holds a training of seed 5, not 6"):
        train(config(steps=4), *regression(), tmp_path, seed=6)


def test_a_metric_that_is_no_scalar_is_named(tmp_path):
    task, data = regression(evaluate=False)
    vector = Task(task.init, lambda p, b, k: (task.loss(p, b, k)[0], {"wide": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"metric wide: got shape \(2,\), expected a scalar"):
        train(config(), vector, data, tmp_path, seed=5)


@contextmanager
def allowing(*fields):
    """As `--allow_mismatch` does."""
    token = runs._ALLOWED.set(frozenset(fields))
    yield
    runs._ALLOWED.reset(token)


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


def test_a_failure_to_write_metrics_is_raised_and_everything_closed(tmp_path, monkeypatch):
    closed = []
    for opened in (Checkpoints, DeviceBatches):
        close = opened.close
        monkeypatch.setattr(opened, "close", lambda self, close=close: (closed.append(type(self)), close(self)))

    def full(self):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(MetricsLog, "flush", full)
    with pytest.raises(OSError, match="No space left on device"):
        train(config(steps=6), *regression(), tmp_path, seed=5)
    assert closed == [DeviceBatches, Checkpoints]


def test_training_learns(tmp_path):
    task, data = regression(evaluate=False)
    outcome = train(config(steps=150, save_every=0), task, data, tmp_path, seed=0)
    np.testing.assert_allclose(outcome.params["kernel"], [1.0, -2.0, 0.5], atol=0.1)
    assert outcome.evaluation == {}


def signalled(monkeypatch, after, number=signal.SIGTERM):
    """Send a signal to this process when so many batches have been read."""
    read, count = DeviceBatches.__next__, iter(range(after))

    def send(self):
        if next(count, None) is None:
            os.kill(os.getpid(), number)
        return read(self)

    monkeypatch.setattr(DeviceBatches, "__next__", send)


@pytest.mark.parametrize("after", [0, 3, 5, 11])
def test_sigterm_saves_and_leaves_with_its_own_status(undisturbed, tmp_path, monkeypatch, capsys, after):
    """After 3 and 11 batches the step to leave at, 4 or 12, is one of saving, and 12 one of evaluating too."""
    expected, expected_rows = undisturbed
    signalled(monkeypatch, after)
    with pytest.raises(SystemExit) as stop:
        train(config(), *regression(), tmp_path, seed=5, label="toy")
    assert stop.value.code == 75
    assert f"toy: SIGTERM, saved after {after + 1} updates\n" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    outcome = train(config(), *regression(), tmp_path, seed=5)
    chex.assert_trees_all_equal(outcome.state, expected.state)
    by_step = sorted(rows(tmp_path), key=lambda row: (row["split"], row["step"]))
    assert by_step == sorted(expected_rows, key=lambda row: (row["split"], row["step"]))


def poisoned(first, last, count=50):
    """The regression, its updates from `first` to `last` made NaN by their data."""
    task, _ = regression()
    random = np.random.default_rng(0)
    columns = {"x": random.standard_normal((count * 8, 3)).astype(np.float32), "y": np.zeros(count * 8, np.float32)}
    columns["y"][(first - 1) * 8 : last * 8 : 8] = np.nan
    return task, examples(columns, seed=0, shuffle=False)


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


def test_rows_of_columns_are_named_as_they_are_in_the_columns(tmp_path):
    task, _ = regression()
    columns = {"x": np.ones((40, 3), np.float32), "y": np.where(np.arange(40) == 17, np.nan, 1).astype(np.float32)}
    with pytest.raises(UserError, match="1 updates in a row"):
        train(config(max_skipped=0), task, columns, tmp_path, seed=5)
    told = json.loads((tmp_path / "not_finite.json").read_text())
    assert 17 in told["rows"] and len(told["rows"]) == 8


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


def saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


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


def test_not_a_number_is_no_progress(tmp_path):
    task, data = regression()
    losses = iter([float("nan"), 3.0, 2.0, float("nan"), 5.0, 1.0])
    judged = Task(task.init, task.loss, lambda params: {"score": next(losses)})
    outcome = train(config(eval_every=1, stop_metric="score", patience=2), judged, data, tmp_path, seed=5)
    assert outcome.evaluation["step"].tolist() == [0, 1, 2, 3, 4]


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


def test_own_checkpoint_then_resume_from_then_init_from_then_scratch(undisturbed, tmp_path, capsys, monkeypatch):
    expected, _ = undisturbed
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


def test_init_from_takes_the_weights_alone(tmp_path):
    source = train(config(steps=8, ema_decay=0.5), *regression(), tmp_path / "a", seed=5)
    task, data = regression()
    seen = []
    first = Task(task.init, task.loss, lambda params: seen.append(np.asarray(params["kernel"])) or {"x": 0.0})
    with origin(init_from=tmp_path / "a" / "checkpoints" / "8"):
        outcome = train(config(), first, data, tmp_path / "b", seed=6)
    np.testing.assert_array_equal(seen[0], source.state.ema["kernel"])
    assert outcome.train["step"].tolist() == list(range(1, STEPS + 1))
