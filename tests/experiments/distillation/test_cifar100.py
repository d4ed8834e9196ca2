"""The published setting on CIFAR-100: its recipe and losses, and two updates of it through the real input pipeline."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from experiments.commands.flags import parse
from experiments.distillation import cifar100
from experiments.distillation.cifar100 import PAIRS, PRESETS, loss_heads
from experiments.distillation.networks import Outputs
from experiments.runs import record_data
from experiments.sources import cifar100 as source
from experiments.training.optimizer import stepped_schedule
from tests.experiments.result_run import check_run
from tests.experiments.sources.made_up_cifar100 import COUNTS, prepare

PAPER = PRESETS["paper"]


def test_the_recipe_is_the_published_one():
    assert source.EXAMPLES["train"] == cifar100.EPOCH and PAPER.temperature == 4
    assert PAPER.train == PAPER.teacher_train
    train, optimizer = PAPER.train, PAPER.train.optimizer
    assert (train.batch_size, train.precision, train.ema_decay) == (64, "float32", 0)
    assert train.steps * train.batch_size == 240 * cifar100.EPOCH
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
    rate, updates = stepped_schedule(optimizer, train.steps), cifar100.EPOCH / 64
    rates = [float(rate(round(epoch * updates))) for epoch in (0, 149.9, 150.1, 179.9, 180.1, 209.9, 210.1, 240)]
    np.testing.assert_allclose(rates, np.repeat([5e-2, 5e-3, 5e-4, 5e-5], 2), rtol=1e-5)


def drawn(seed):
    rng = np.random.default_rng(seed)
    return Outputs(jnp.asarray(3 * rng.normal(size=(6, 100)), jnp.float32), jnp.zeros((6, 4)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "beta"), [("wrn-40-2:wrn-40-1", 6.0), ("resnet56:resnet20", 2.0), ("resnet8:resnet8", 8.0)]
)
def test_dkd_has_the_beta_of_the_pair_and_a_weight_that_rises_over_20_epochs(pair, beta):
    heads, weights = loss_heads(PAPER, pair, "dkd")
    s, t, y = drawn(0), drawn(1), jnp.arange(6)
    found = heads(s, t, y)
    np.testing.assert_allclose(
        sum(found.values()), kd.dkd(s.logits, t.logits, y, beta=beta, temperature=4.0), rtol=1e-5
    )
    assert set(weights) == {"teacher"} and set(found) == {"labels", "teacher"}
    rising = weights["teacher"]
    epochs = [float(rising(epoch * cifar100.EPOCH / 64)) for epoch in (0, 5, 20, 240)]
    np.testing.assert_allclose(epochs, [0, 0.25, 1, 1], rtol=1e-5)
    assert float(jax.jit(rising)(jnp.int32(15_625))) == 1


def test_the_other_objectives_are_those_of_digits_at_one_temperature():
    s, t, y = drawn(0), drawn(1), jnp.arange(6)
    heads, weights = loss_heads(PAPER, "resnet56:resnet20", "hinton")
    np.testing.assert_allclose(heads(s, t, y), kd.hinton(s.logits, t.logits, y, temperature=4.0), rtol=1e-6)
    assert weights == {}


@pytest.mark.slow
def test_two_updates_of_the_published_setting_with_shallow_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "EXAMPLES", COUNTS)
    shortened = replace(PAPER.train, steps=2, batch_size=4, eval_every=2, workers=0)
    folder = prepare(tmp_path / "tfds")
    config = replace(
        PAPER,
        seeds=(3,),
        pairs=("wrn-10-1:resnet8",),
        objectives=("hinton", "dkd"),
        data_dir=folder,
        teacher_train=shortened,
        train=shortened,
    )
    absent = {claim.id.partition("/")[2] for claim in cifar100.CLAIMS}
    result = check_run(cifar100, config, tmp_path, absent=absent)
    table = result.tables["students"]
    assert table["objective"] == ["hinton", "dkd"] and len(set(table["teacher accuracy"])) == 1
    assert all(curve["step"].tolist() == [0, 2] for curve in result.series.values())
    assert len({curve["accuracy"][0, 0] for curve in result.series.values()}) == 1  # one start for all objectives
    assert set(result.data) == {"cifar100 train", "cifar100 test"}
    record_data(tmp_path, result.data)  # is what was recorded before the training


def test_claims_are_the_least_gain_of_all_pairs_and_the_mean_distance_to_the_table():
    gains = {"ce": -2.0, "hinton": 0.0, "dkd": 1.0}
    rows = [
        (pair, name, seed, values.hinton + gain * (1 + number) + (0.25 if seed else 0.0))
        for seed in (0, 1)
        for number, (pair, values) in enumerate(PAIRS.items())
        for name, gain in gains.items()
    ]
    table = dict(zip(("pair", "objective", "seed", "accuracy"), map(list, zip(*rows, strict=True)), strict=True))
    found = cifar100._measured(table)
    assert set(found) == {claim.id for claim in cifar100.CLAIMS}
    np.testing.assert_allclose(found["distillation/dkd-cifar100"], [1.0, 1.0])
    np.testing.assert_allclose(found["distillation/kd-cifar100"], [2.0, 2.0])
    np.testing.assert_allclose(found["distillation/kd-cifar100-accuracy"], [0.0, 0.25], atol=1e-9)
    # 3 points on average more than KD's numbers, of which DKD's are 1.582 more.
    np.testing.assert_allclose(found["distillation/dkd-cifar100-accuracy"], [1.418, 1.668], atol=1e-9)
    fewer = {
        name: [x for x, pair in zip(column, table["pair"], strict=True) if pair != "resnet56:resnet20"]
        for name, column in table.items()
    }
    assert cifar100._measured(fewer) == {}
    without = {
        name: [x for x, own in zip(column, table["objective"], strict=True) if own != "dkd"]
        for name, column in table.items()
    }
    assert set(cifar100._measured(without)) == {"distillation/kd-cifar100", "distillation/kd-cifar100-accuracy"}


def test_the_command_line_sets_the_fields_of_momentum():
    flags = ["--train.optimizer.milestones", "0.5", "0.9", "--train.optimizer.momentum", "0.8"]
    read, _ = parse(PAPER, "run", flags)
    assert read.train.optimizer == replace(PAPER.train.optimizer, milestones=(0.5, 0.9), momentum=0.8)
    assert read.teacher_train == PAPER.teacher_train


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pairs", ("resnet56",), "pairs: got 'resnet56', expected a teacher and a student"),
        ("pairs", ("resnet56:vgg8",), "pairs: got 'vgg8', expected resnetD"),
        ("objectives", ("kl",), "objectives: got 'kl', expected one of"),
        ("objectives", ("mutual",), "objectives: got 'mutual', expected one without a projection"),
        ("objectives", ("crd",), "objectives: got 'crd'"),
        ("objectives", ("mcmi",), "objectives: got 'mcmi'"),
        ("temperature", 0.0, "temperature: got 0.0, expected above 0"),
        ("warmup", 2.0, "warmup: got 2.0, expected between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **{field: value})
