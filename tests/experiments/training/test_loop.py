"""The loop: its order, and that an interrupted training ends where an undisturbed one does."""

import json
from types import SimpleNamespace

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from experiments.errors import UserError
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import OptimizerConfig, TrainConfig
from experiments.training.data import DeviceBatches, batches
from experiments.training.loop import Loop, Position, Task, TrainState, make_update, train
from experiments.training.mesh import AXES
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
    assert (tmp_path / "metrics.jsonl").read_text() == before


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


def test_a_half_written_last_line_of_the_metrics_is_dropped(undisturbed, tmp_path):
    expected, _ = undisturbed
    train(config(steps=8), *regression(), tmp_path, seed=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "split": "tr')
    for steps in (10, STEPS):
        outcome = train(config(steps=steps), *regression(), tmp_path, seed=5)
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
        ([1, 2], "data: got list, expected columns by name or a Grain dataset"),
        (grain.MapDataset.source([{"x": np.ones((8, 3)), "y": np.ones(8)}]), "the data ended before the last step"),
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


@pytest.mark.parametrize(("save_every", "kept"), [(0, []), (5, []), (4, ["4"])])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path, save_every, kept):
    task, data = regression(evaluate=False)

    def loss(params, batch, key):
        value, metrics = task.loss(params, batch, key)
        # The kernel grows by 0.1 per update, so the fifth update is the first whose loss is not finite.
        return jnp.where(jnp.abs(params["kernel"]).max() > 3.2, jnp.nan, -params["kernel"].sum() + 0 * value), metrics

    start = Task(lambda key: {"kernel": jnp.full(3, 3.0)}, loss)
    with pytest.raises(UserError, match="the loss is nan after 5 updates"):
        train(config(steps=9, save_every=save_every), start, data, tmp_path, seed=5)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert saved == kept


def test_a_metric_that_is_no_scalar_is_named(tmp_path):
    task, data = regression(evaluate=False)
    vector = Task(task.init, lambda p, b, k: (task.loss(p, b, k)[0], {"wide": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"metric wide: got shape \(2,\), expected a scalar"):
        train(config(), vector, data, tmp_path, seed=5)


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
