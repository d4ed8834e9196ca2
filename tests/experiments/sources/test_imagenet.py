"""ImageNet as TFDS prepares it, read through the real pipeline from generated pictures."""

import hashlib
import sys

import cloudpickle
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.errors import UserError
from experiments.sources import imagenet
from experiments.sources.imagenet import (
    Augmentation,
    evaluation_examples,
    load_imagenet,
    standardised,
    training_examples,
)
from tests.experiments.sources.made_up_imagenet import COUNTS, prepare

PUBLISHED = Augmentation(size=224, operations=2, probability=0.5, magnitude=9.0, deviation=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def train(folder, monkeypatch):
    monkeypatch.setattr(imagenet, "EXAMPLES", COUNTS)
    return load_imagenet("train", folder)


def test_pictures_are_read_without_tensorflow_in_colour_and_with_their_labels(train):
    assert len(train) == 12 and "tensorflow" not in sys.modules
    for example in train:
        number = int(example["file_name"].decode().split("_")[1].split(".")[0])
        assert example["image"].dtype == np.uint8 and example["image"].shape[-1] == 3
        assert example["image"].shape[:2] == ((240, 320), (333, 200), (60, 500))[number % 3]
        assert example["label"] == number * 321 % 1000


def test_an_order_and_its_pixels_depend_on_seed_and_index_alone(train):
    data = training_examples(train, PUBLISHED, seed=3)
    some = {index: data[index]["image"] for index in (0, 5, 17, 100_000)}
    again = cloudpickle.loads(cloudpickle.dumps(training_examples(train, PUBLISHED, seed=3)))  # as a worker gets it
    for index in reversed(some):
        np.testing.assert_array_equal(again[index]["image"], some[index])
        assert some[index].shape == (224, 224, 3) and some[index].dtype == np.uint8
    labels = [[int(data[i]["label"]) for i in range(12 * epoch, 12 * (epoch + 1))] for epoch in (0, 1)]
    assert sorted(labels[0]) == sorted(labels[1]) == sorted(int(example["label"]) for example in train)
    place = 12 + labels[1].index(labels[0][0])
    assert (data[place]["image"] != data[0]["image"]).mean() > 0.5  # the same picture, drawn anew
    assert (training_examples(train, PUBLISHED, seed=4)[0]["image"] != data[0]["image"]).any()


def test_the_published_augmentation_gives_these_pixels():
    """Change the hash only together with a reason: trainings before and after it differ."""
    ramp = np.add.outer(np.arange(300), np.arange(400)) % 256
    image = Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1).astype(np.uint8))
    digest = hashlib.sha256()
    for seed in range(8):
        digest.update(PUBLISHED(image, np.random.default_rng(seed)).tobytes())
    assert digest.hexdigest() == "8cb5e27244ecf3645ad83f98e5f625091b1f64f0246feca6b2ec71860593aca7"


def test_evaluation_keeps_the_order_and_shows_the_middle(train):
    data = evaluation_examples(train, 224)
    assert len(data) == 12
    assert [data[i]["label"] for i in range(12)] == [example["label"] for example in train]
    assert all(data[i]["image"].shape == (224, 224, 3) for i in range(12))


def test_standardised_pixels_have_mean_0_and_deviation_1_where_imagenet_has_its_own():
    means = np.array([123.675, 116.28, 103.53])
    deviations = np.array([58.395, 57.12, 57.375])
    pixels = np.array([[[means.round(), (means + deviations).round()]]], np.uint8)
    found = standardised(jnp.asarray(pixels))
    np.testing.assert_allclose(found[0, 0], [[0, 0, 0], [1, 1, 1]], atol=0.5 / 57 + 1e-3)
    assert found.dtype == jnp.float32


def test_part_of_the_data_set_is_refused(folder):
    with pytest.raises(UserError, match=r"imagenet2012 \(train\): got 12 examples, expected 1281167"):
        load_imagenet("train", folder)


def test_other_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(imagenet, "EXAMPLES", {"train": 1})
    wrong = [(np.uint8, 1, 3), (np.float32, 3, 3), (np.uint8, 3, 1000)]
    for dtype, colours, label in wrong:
        source = [{"image": np.zeros((4, 5, colours), dtype), "label": label}]
        monkeypatch.setattr(imagenet, "tfds_source", lambda *_, source=source, **__: source)
        with pytest.raises(
            UserError, match=rf"got .*\[4, 5, {colours}\] with label {label}, expected uint8\[H, W, 3\]"
        ):
            load_imagenet("train")


def test_who_has_not_prepared_it_is_told_how(tmp_path):
    with pytest.raises(UserError) as caught:
        load_imagenet("validation", str(tmp_path))
    message = str(caught.value)
    assert "\n" not in message and "tfds build imagenet2012 --file_format=array_record" in message
    assert "ILSVRC2012_img_train.tar" in message and "lightnet/classification" in message
