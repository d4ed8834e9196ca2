"""CIFAR-100 as TFDS prepares it, read through the real pipeline from generated pictures."""

import hashlib
import sys

import cloudpickle
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.sources import cifar100
from experiments.sources.cifar100 import load_cifar100, shifted_and_flipped, standardised, training_examples
from tests.experiments.sources.made_up_cifar100 import COUNTS, label, picture, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def train(folder, monkeypatch):
    monkeypatch.setattr(cifar100, "EXAMPLES", COUNTS)
    return load_cifar100("train", folder)


def test_pictures_are_read_without_tensorflow_and_with_their_finer_labels(train, folder):
    assert "tensorflow" not in sys.modules
    for split, part in (("train", train), ("test", load_cifar100("test", folder))):
        assert part["image"].shape == (COUNTS[split], 32, 32, 3) and part["label"].dtype == np.int32
        made = {picture(split, i).tobytes(): label(i) for i in range(COUNTS[split])}
        found = {image.tobytes(): int(own) for image, own in zip(part["image"], part["label"], strict=True)}
        assert found == made


def test_an_order_and_its_pixels_depend_on_seed_and_index_alone(train):
    data = training_examples(train, seed=3)
    some = {index: data[index]["image"] for index in (0, 5, 30, 100_000)}
    again = cloudpickle.loads(cloudpickle.dumps(training_examples(train, seed=3)))  # as a worker gets it
    for index in reversed(some):
        np.testing.assert_array_equal(again[index]["image"], some[index])
        assert some[index].shape == (32, 32, 3) and some[index].dtype == np.uint8
    labels = [[int(data[i]["label"]) for i in range(24 * epoch, 24 * (epoch + 1))] for epoch in (0, 1)]
    assert sorted(labels[0]) == sorted(labels[1]) == sorted(train["label"].tolist())
    place = 24 + labels[1].index(labels[0][0])
    assert (data[place]["image"] != data[0]["image"]).mean() > 0.5  # the same picture, drawn anew
    assert (training_examples(train, seed=4)[0]["image"] != data[0]["image"]).any()


def test_the_augmentation_gives_these_pixels():
    """Change the hash only together with a reason: trainings before and after it differ."""
    image, digest = picture("train", 0), hashlib.sha256()
    for seed in range(8):
        digest.update(shifted_and_flipped(image, np.random.default_rng(seed)).tobytes())
    assert digest.hexdigest() == "2511d79d43e52d766b14c4f66ceb14f40b07160f84127326d2c39e14797b9249"


def test_all_shifts_of_up_to_four_pixels_come_about_in_both_directions():
    numbered = np.arange(32 * 32).reshape(32, 32, 1)
    padded, random, seen = np.pad(numbered, ((4, 4), (4, 4), (0, 0))), np.random.default_rng(0), []
    for _ in range(4000):
        shown = shifted_and_flipped(numbered, random)
        mirrored = shown[16, 15, 0] > shown[16, 16, 0]
        straight = shown[:, ::-1] if mirrored else shown
        row, column = divmod(int(straight[16, 16, 0]), 32)
        np.testing.assert_array_equal(straight, padded[row - 12 : row + 20, column - 12 : column + 20])
        seen.append((row - 16, column - 16, bool(mirrored)))
    assert set(seen) == {(i, j, flip) for i in range(-4, 5) for j in range(-4, 5) for flip in (False, True)}
    assert abs(np.mean([flip for *_, flip in seen]) - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_standardised_pixels_have_mean_0_and_deviation_1_where_cifar_has_its_own():
    means, deviations = 255 * np.array(cifar100.MEAN), 255 * np.array(cifar100.DEVIATION)
    pixels = np.array([[[means.round(), (means + deviations).round()]]], np.uint8)
    found = standardised(jnp.asarray(pixels))
    np.testing.assert_allclose(found[0, 0], [[0, 0, 0], [1, 1, 1]], atol=0.5 / 65 + 1e-3)
    assert found.dtype == jnp.float32


def test_part_of_the_data_set_is_refused(folder):
    with pytest.raises(UserError, match=r"cifar100 \(train\): got 24 examples, expected 50000"):
        load_cifar100("train", folder)


def test_other_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(cifar100, "EXAMPLES", {"train": 2})
    good = {"image": np.zeros((32, 32, 3), np.uint8), "label": 99}
    for dtype, side, number in [(np.uint8, 28, 3), (np.float32, 32, 3), (np.uint8, 32, 100)]:
        source = [good, {"image": np.zeros((side, 32, 3), dtype), "label": number}]
        monkeypatch.setattr(cifar100, "tfds_source", lambda *_, source=source, **__: source)
        with pytest.raises(UserError, match=rf"got .*\[{side}, 32, 3\] with label {number}, expected uint8"):
            load_cifar100("train")


def test_who_has_not_prepared_it_is_told_how(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def refused(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refused)
    with pytest.raises(UserError) as caught:
        load_cifar100("test", str(tmp_path))
    message = str(caught.value)
    assert "\n" not in message and "no network" in message and "distillation/digits_table" in message
    assert "tfds build cifar100 --file_format=array_record, which downloads cifar-100-binary.tar.gz" in message
