"""The published setting on ImageNet: its recipe, its sizes, and two updates of it through the real input pipeline."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lightnet import imagenet
from experiments.lightnet.imagenet import CLAIMS, MODELS, PRESETS, AugmentationConfig, Config, model_of, training_batch
from experiments.runs import record_data
from experiments.sources import imagenet as source
from tests.experiments.sources.made_up_imagenet import COUNTS, prepare

PAPER = PRESETS["paper"]


def parameters(config, name):
    shapes = jax.eval_shape(model_of(config, name).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("size", "name", "count"),
    [
        ("tiny", "lightnet+both", 6_028_280),
        ("tiny", "softmax+learned", 5_691_496),
        pytest.param("small", "lightnet+both", 22_819_832, marks=pytest.mark.slow),
        pytest.param("tiny", "multiplicative-4+lrpe", 5_951_080, marks=pytest.mark.slow),
        pytest.param("small", "softmax+learned", 21_998_824, marks=pytest.mark.slow),
        pytest.param("small", "multiplicative-4+lrpe", 22_517_992, marks=pytest.mark.slow),
    ],
)
def test_models_have_these_numbers_of_parameters(size, name, count):
    assert parameters(replace(PAPER, size=size), name) == count


def test_the_recipe_is_the_published_one():
    train, optimizer = PAPER.train, PAPER.train.optimizer
    assert train.steps * train.batch_size / source.EXAMPLES["train"] == pytest.approx(300, abs=1e-3)
    assert source.EXAMPLES["train"] == imagenet.EPOCH
    assert (train.batch_size, train.precision, train.ema_decay) == (1024, "bfloat16", 0)
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (1.5e-3, 0.05, 5.0)
    assert (optimizer.schedule, optimizer.b1, optimizer.b2) == ("cosine", 0.9, 0.999)
    assert optimizer.warmup * 300 == pytest.approx(20)
    assert model_of(PAPER, MODELS[0]).backbone.drop_path == 0.1 and model_of(PAPER, MODELS[1]).backbone.dropout == 0
    assert PAPER.augmentation == AugmentationConfig(
        operations=2, probability=0.5, magnitude=9.0, deviation=0.5, erasing=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1
    )


@pytest.mark.slow
def test_labels_are_smoothed_and_mixed_and_pictures_standardised_first():
    batch = {"image": np.full((4, 8, 8, 3), 255, np.uint8), "label": np.arange(4)}
    plain = AugmentationConfig(erasing=0.0, mixup=0.0, cutmix=0.0)
    images, targets = training_batch(plain, batch, jax.random.key(0))
    np.testing.assert_allclose(images[0, 0, 0], [2.2489, 2.4286, 2.64], atol=1e-4)
    assert (
        targets.shape == (4, 1000) and targets[1, 1] == pytest.approx(0.9001) and targets[1, 2] == pytest.approx(1e-4)
    )
    mixed = training_batch(replace(plain, mixup=0.8), batch, jax.random.key(1))[1]
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-5)
    assert mixed[0, 0] + mixed[0, 3] == pytest.approx(0.9002, abs=1e-5) and 1e-4 < mixed[0, 3] < 0.9
    erased = training_batch(replace(plain, erasing=1.0), batch, jax.random.key(0))[0]
    assert (erased != images).any()


@pytest.mark.slow
def test_two_updates_of_the_published_setting_at_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "EXAMPLES", COUNTS)
    shortened = replace(PAPER.train, steps=2, batch_size=4, eval_every=2, workers=0)
    folder = prepare(tmp_path / "tfds")
    config = replace(PAPER, seeds=(0,), num_layers=1, data_dir=folder, train=shortened)
    result = imagenet.run(config, tmp_path)
    assert set(result.measured) == {claim.id for claim in CLAIMS}
    table = result.tables["accuracy"]
    assert table["model"] == list(MODELS) and all(0 <= accuracy <= 100 for accuracy in table["accuracy"])
    for name in MODELS:
        assert result.series[name]["step"].tolist() == [0, 2]
        # In bfloat16 an untrained model guesses uniformly, whatever the labels are mixed of.
        rows = (tmp_path / "training" / f"{name}-seed0" / "metrics.jsonl").read_text().splitlines()
        losses = [row["loss"] for row in map(json.loads, rows) if row["split"] == "train"]
        assert len(losses) == 2 and losses[0] == pytest.approx(np.log(1000), rel=0.1)
    assert set(result.data) == {"imagenet2012 train, a sample", "imagenet2012 validation, a sample"}
    record_data(tmp_path, result.data)  # is what was recorded before the training
    imagenet.plot(SimpleNamespace(series=result.series))


def test_the_claim_is_the_difference_to_the_better_of_the_others():
    table = {"model": [name for name in MODELS for _ in range(2)], "accuracy": [72.0, 73.0, 71.0, 75.0, 72.5, 70.0]}
    (measured,) = imagenet._measured(table).values()
    np.testing.assert_allclose(measured, [-0.5, -2.0])
    assert imagenet._measured({"model": ["lightnet+both"], "accuracy": [72.0]}) == {}


@pytest.mark.parametrize("model", ["mamba+none", "lightnet", "lightnet+nowhere", "other+both"])
def test_models_that_are_none_are_refused(model):
    with pytest.raises(ValueError, match="models: got"):
        Config(models=(model,))
