"""Long rows: the loss is that of the logits, no device holds a whole row, and what is measured is told as it is."""

import re
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import virtual_devices
from experiments.errors import UserError
from experiments.language import ModelConfig, TextConfig
from experiments.lightnet import long_context
from experiments.lightnet.equal_on_devices import distance
from experiments.lightnet.long_context import _measured, ratios, rows_of, task_of
from experiments.planning import hardware
from experiments.training.mesh import batch_sharding, make_mesh

MODELS = ("lightnet+both", "mamba+none")
SMALL = replace(
    long_context.PRESETS["smoke"],
    models=MODELS,
    compared=328,
    token_chunk=19,
    model=ModelConfig(num_layers=1, width=16, num_heads=2, hidden=24),
)


def test_next_is_the_byte_behind_each_token():
    rows = rows_of(SMALL, 1, 100)
    assert rows["tokens"].shape == rows["next"].shape and rows["tokens"].dtype == np.uint8
    np.testing.assert_array_equal(rows["tokens"].ravel()[1:], rows["next"].ravel()[:-1])


@pytest.mark.slow
def test_the_loss_is_that_of_the_logits():
    task, batch = task_of(SMALL, "mamba+none"), {name: x[:3] for name, x in rows_of(SMALL, 0, 50).items()}
    variables = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
    model = long_context.language_model(SMALL, "mamba+none").build()
    logits = jax.jit(model.apply)(variables, batch["tokens"].astype(np.int32))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"].astype(np.int32)).mean()
    found, _ = jax.jit(task.loss)(variables, batch, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(jax.jit(task.loss)(variables, {**batch, "next": batch["tokens"]}, None)[0] - expected) > 1e-3


def whole_rows_held(name):
    """Distance from one device, and arrays as long as a row, other than its bytes, in the program of one of eight."""
    task, mesh = task_of(SMALL, name), make_mesh(SMALL.train.mesh)
    rows = {column: x[:1] for column, x in rows_of(SMALL, 0, SMALL.compared).items()}
    with jax.set_mesh(mesh):
        variables = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
        batch = jax.device_put(rows, batch_sharding(mesh))
        differentiate = jax.value_and_grad(lambda variables: task.loss(variables, batch, None)[0])
        text = jax.jit(differentiate).lower(variables).compile().as_text()
    found = re.findall(rf"\b(?!u8)[a-z]+\d+\[(?:\d+,)*{SMALL.compared}(?:,\d+)*\]", text)
    return long_context.distance_of(SMALL, name, 0), sorted(set(found))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MODELS)
def test_no_device_of_eight_holds_a_whole_row_and_all_give_what_one_gives(name):
    far, held = virtual_devices.on_virtual_devices(8, whole_rows_held, name)
    assert 0 < far < 1e-5
    assert held == []


def test_a_gradient_that_differs_is_seen_and_one_that_is_nearly_nothing_is_not_blown_up():
    ones, none = {"a": np.ones(4), "b": np.full(2, 1e-12)}, {"a": np.ones(4), "b": np.zeros(2)}
    assert distance((1.0, ones), (1.0, ones)) == 0
    assert distance((1.0, ones), (1.0, none)) < 1e-8
    assert distance((1.0, {**ones, "a": np.array([1, 1, 1, 1.1])}), (1.0, ones)) == pytest.approx(0.05)
    assert distance((1.5, ones), (1.0, ones)) == pytest.approx(0.5)
    assert np.isnan(distance((np.nan, ones), (1.0, ones)))


def test_ratios_are_of_neighbours_of_one_model_and_scaled_to_twice_the_chips():
    plans = {"model": ["a", "a", "a", "b", "b"], "chips": [8, 16, 64, 8, 16], "temporaries": [80, 40, 20, 80, 80]}
    assert ratios(plans) == [2.0, 1.0, 1.0]
    trainings = {"peak_bytes": [2**30, 3 * 2**30], "error": [1e-7, 2e-7]}
    assert _measured({"trainings": trainings, "plans": plans}) == {
        "lightnet/long-context-memory": [3.0],
        "lightnet/long-context-equal": [2e-7],
        "lightnet/long-context-plan": [1.0],
    }
    assert _measured({"trainings": {"peak_bytes": [None], "error": [None]}}) == {}


def test_without_a_compiler_nothing_is_planned_and_it_is_said(monkeypatch, capsys, tmp_path):
    def topology(name):
        raise UserError(f"topology {name!r} cannot be compiled for here")

    monkeypatch.setattr(hardware, "topology", topology)
    table = long_context._plan_all(long_context.PRESETS["cpu"], tmp_path)
    assert ratios(table) == [] and "its claim not tested: topology 'v5p:2x2x2' cannot" in capsys.readouterr().err


def test_a_training_that_is_done_is_not_done_again_when_a_run_goes_on(monkeypatch, tmp_path):
    calls = []

    def process(count, function, *arguments):
        calls.append((count, function.__name__, arguments[1:]))
        return {"losses": [1.0], "peak_bytes": 5, "seconds": 2.0, "error": 0.0}

    monkeypatch.setattr(virtual_devices, "on_virtual_devices", process)
    config = replace(SMALL, virtual_devices=8, models=("mamba+none",))
    first, second = (long_context.run(config, tmp_path).tables for _ in range(2))
    assert calls == [(8, "trained_alone", ("mamba+none", 0))] and first == second
    assert first["trainings"]["peak_bytes"] == [5]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_plan_is_made_for_chips_that_share_the_row():
    pytest.importorskip("libtpu")
    config = replace(SMALL, planned=4096, train=replace(SMALL.train, remat="nothing_saveable"))
    found = long_context.planned(config, "mamba+none", "v5e:2x2")
    assert (found.mesh["sequence"], found.tokens) == (4, 4096)
    assert found.memory["temporaries"] > 4096 // 4 * 16 * 4


def test_what_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match="models: got"):
        replace(SMALL, models=("mamba",))
    with pytest.raises(ValueError, match="virtual_devices: got -1, expected at least 0"):
        replace(SMALL, virtual_devices=-1)
    with pytest.raises(ValueError, match="fewer than the"):
        rows_of(replace(SMALL, text=TextConfig(every=64)), 0, 10**9)


@pytest.mark.slow
def test_tokens_are_read_as_numbers_beyond_the_range_of_a_signed_byte():
    task = task_of(SMALL, "mamba+none")
    variables = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
    batch = {"tokens": np.array([[200, 255, 128]], np.uint8), "next": np.array([[255, 128, 7]], np.uint8)}
    wide = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    loss = jax.jit(task.loss)
    np.testing.assert_array_equal(loss(variables, batch, None)[0], loss(variables, wide, None)[0])
