"""The loop: its order, and that an interrupted training ends where an undisturbed one does."""

import signal
from types import SimpleNamespace

import chex
import grain
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from experiments.errors import UserError
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import CheckpointConfig, TrainConfig
from experiments.training.data import DeviceBatches
from experiments.training.loop import Loop, train
from experiments.training.mesh import AXES
from experiments.training.metrics import MetricsLog
from experiments.training.preemption import Preempted
from experiments.training.start import Position
from experiments.training.task import Task
from experiments.training.update import Report, TrainState
from tests.experiments.training.toy import STEPS, allowing, config, regression, rows, signalled


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(config(), *regression(), folder, seed=5), rows(folder)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_seeds_decide_everything(undisturbed, tmp_path):
    expected, _ = undisturbed
    chex.assert_trees_all_equal(train(config(), *regression(), tmp_path / "same", seed=5).params, expected.params)
    other = train(config(), *regression(), tmp_path / "other", seed=6).params
    assert not np.array_equal(other["kernel"], expected.params["kernel"])


@pytest.mark.slow
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


@pytest.mark.slow
def test_training_learns(tmp_path):
    task, data = regression(evaluate=False)
    outcome = train(config(steps=150, save_every=0), task, data, tmp_path, seed=0)
    np.testing.assert_allclose(outcome.params["kernel"], [1.0, -2.0, 0.5], atol=0.1)
    assert outcome.evaluation == {}


@pytest.mark.slow
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
