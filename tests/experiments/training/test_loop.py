"""The loop: its order, and that an interrupted training ends where an undisturbed one does."""

import json
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.errors import UserError
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import OptimizerConfig, TrainConfig
from experiments.training.data import DeviceBatches, batches
from experiments.training.loop import Loop, Position, Task, TrainState, make_update, train
from experiments.training.metrics import MetricsLog

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
    return task, batches(columns, batch_size=8, seed=3)


def config(steps=STEPS, save_every=4, eval_every=3):
    """A short training with a rate that depends on the step."""
    return TrainConfig(steps, 8, eval_every, save_every, OptimizerConfig(learning_rate=0.1, clip_norm=1.0))


class Interrupted(Exception):
    """Raised in place of a kill."""


def test_order_is_evaluate_save_batch_step_log():
    calls = []

    def record(name, value=None):
        def call(*arguments, **_):
            calls.append(name)
            return value

        return call

    def update(state, batch):
        calls.append("step")
        return state, {"loss": 1.0}

    log = SimpleNamespace(write=lambda step, split, values: calls.append(f"log {split} {step}"), sync=record("sync"))

    class Batches:
        __next__ = record("batch", 0)
        get_state = record("position", 0)

    checkpoints = SimpleNamespace(save=record("save"))
    loop = Loop(
        TrainConfig(steps=2, eval_every=1, save_every=1),
        lambda params: calls.append("evaluate") or {},
        update,
        Batches(),
        checkpoints,
        log,
        SimpleNamespace(advance=record("advance")),
    )
    loop.run(Position(TrainState(jnp.zeros(()), None, None)))
    first = ["evaluate", "log eval 0", "batch", "step"]
    second = ["evaluate", "log eval 1", "sync", "position", "save", "batch", "step", "log train 1", "advance"]
    last = ["evaluate", "log eval 2", "sync", "position", "save", "log train 2", "advance"]
    assert calls == first + second + last


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
    assert set(outcome.train) == {"step", "loss", "error"}


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
    assert sorted((tmp_path / "metrics.jsonl").read_text()) == sorted(before)


def test_each_update_gets_a_key_of_its_own():
    optimizer = optax.sgd(0.0)
    update = make_update(lambda w, batch, key: (w, {"draw": jax.random.uniform(key)}), optimizer, seed=1)
    state, draws = TrainState(jnp.array(0), jnp.zeros(()), optimizer.init(jnp.zeros(()))), []
    for _ in range(5):
        state, metrics = update(state, None)
        draws.append(float(metrics["draw"]))
    assert len(set(draws)) == 5


def test_seeds_decide_everything(undisturbed, tmp_path):
    expected, _ = undisturbed
    chex.assert_trees_all_equal(train(config(), *regression(), tmp_path / "same", seed=5).params, expected.params)
    other = train(config(), *regression(), tmp_path / "other", seed=6).params
    assert not np.array_equal(other["kernel"], expected.params["kernel"])


def test_an_unreadable_checkpoint_stops_the_training(tmp_path):
    train(config(steps=4), *regression(), tmp_path, seed=5)
    for file in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"checkpoint 4 in .* cannot be read"):
        train(config(steps=4), *regression(), tmp_path, seed=5)


def test_more_steps_continue_and_fewer_are_refused(tmp_path):
    first = train(config(steps=6), *regression(), tmp_path, seed=5)
    longer = train(config(steps=9), *regression(), tmp_path, seed=5)
    np.testing.assert_array_equal(longer.train["loss"][:6], first.train["loss"])
    assert longer.train["step"].tolist() == list(range(1, 10))
    with pytest.raises(UserError, match="is at step 9 already, beyond the 4 steps asked for"):
        train(config(steps=4), *regression(), tmp_path, seed=5)


def test_a_failure_to_write_metrics_is_raised_and_everything_closed(tmp_path, monkeypatch):
    closed = []
    for opened in (Checkpoints, DeviceBatches):
        close = opened.close
        monkeypatch.setattr(opened, "close", lambda self, close=close: (closed.append(type(self)), close(self)))

    def full(self):
        raise OSError(28, "No space left on device", str(self.path))

    monkeypatch.setattr(MetricsLog, "flush", full)
    with pytest.raises(OSError, match="No space left on device"):
        train(config(steps=6), *regression(), tmp_path, seed=5)
    assert closed == [DeviceBatches, Checkpoints]


def test_training_learns(tmp_path):
    task, data = regression(evaluate=False)
    outcome = train(config(steps=150, save_every=0), task, data, tmp_path, seed=0)
    np.testing.assert_allclose(outcome.params["kernel"], [1.0, -2.0, 0.5], atol=0.1)
    assert outcome.evaluation == {}
