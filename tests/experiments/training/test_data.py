"""Batches: order, position, fingerprints, and TensorFlow Datasets without TensorFlow."""

import io
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.errors import UserError
from experiments.training.data import DeviceBatches, batches, fingerprint, tfds_source


def numbers(count=10):
    """One column that names its rows."""
    return {"x": np.arange(count)}


def test_every_epoch_has_each_row_once_in_another_order():
    stream = batches(numbers(), batch_size=4, seed=0)
    seen = np.concatenate([stream[i]["x"] for i in range(5)])
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second) and list(first) != list(range(10))


def test_order_is_a_pure_function_of_seed_and_index():
    one, two, other = (batches(numbers(100), 8, seed=seed) for seed in (4, 4, 5))
    for index in [31, 0, 7]:
        np.testing.assert_array_equal(one[index]["x"], two[index]["x"])
    assert any(not np.array_equal(one[i]["x"], other[i]["x"]) for i in range(3))


def test_unshuffled_keeps_the_order_of_the_source():
    np.testing.assert_array_equal(batches(numbers(), 4, seed=0, shuffle=False)[2]["x"], [8, 9, 0, 1])


@pytest.mark.parametrize("position", range(6))
def test_position_restored_anywhere_gives_the_same_remainder(position):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    whole = DeviceBatches(batches(numbers(), 4, seed=1), sharding)
    values = [np.asarray(next(whole)["x"]) for _ in range(8)]
    part = DeviceBatches(batches(numbers(), 4, seed=1), sharding)
    for _ in range(position):
        next(part)
    saved = json.loads(json.dumps(part.get_state()))
    rest = DeviceBatches(batches(numbers(), 4, seed=1), sharding, saved)
    for expected in values[position:]:
        np.testing.assert_array_equal(next(rest)["x"], expected)
    for opened in (whole, part, rest):
        opened.close()


def test_columns_must_be_equally_long():
    with pytest.raises(ValueError, match=r"columns: got lengths \{'x': 3, 'y': 2\}"):
        batches({"x": np.zeros(3), "y": np.zeros(2)}, 1, seed=0)


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.arange(4) + 1},
        {"x": np.arange(4.0)},
        {"x": np.arange(4).reshape(2, 2)},
        {"y": np.arange(4)},
    ],
)
def test_fingerprint_sees_values_dtype_shape_and_name(other):
    assert fingerprint(other) != fingerprint({"x": np.arange(4)})
    assert fingerprint({"x": np.arange(8)[::2]}) == fingerprint({"x": np.array([0, 2, 4, 6])})


@pytest.fixture
def tiny_data_set(tmp_path):
    """A prepared TFDS data set of ten small images, made without TensorFlow."""
    import tensorflow_datasets as tfds

    def png(value):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
        file.seek(0)
        return file

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        """Ten images."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            image, label = tfds.features.Image(shape=(8, 8, 1)), tfds.features.ClassLabel(num_classes=3)
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image": image, "label": label}))

        def _split_generators(self, _):
            return {"train": ((i, {"image": png(i), "label": i % 3}) for i in range(10))}

        def _generate_examples(self):
            raise NotImplementedError

    TinyImages(data_dir=tmp_path, file_format="array_record").download_and_prepare(file_format="array_record")
    return tmp_path


def test_tfds_is_read_by_name_without_tensorflow(tiny_data_set):
    source = tfds_source("tiny_images", "train[:80%]", str(tiny_data_set), embedded="scikit-learn's digits")
    assert len(source) == 8
    seen = np.concatenate([batches(source, 4, seed=0)[i]["image"] for i in range(2)])
    assert seen.shape == (8, 8, 8, 1) and len({image.mean() for image in seen}) == 8
    assert "tensorflow" not in sys.modules


def test_an_absent_data_set_names_the_embedded_alternative(tmp_path):
    with pytest.raises(UserError) as error:
        tfds_source("no_such_set", "train", str(tmp_path), embedded="scikit-learn's digits")
    message = str(error.value)
    assert (
        "\n" not in message and "'no_such_set' (train)" in message and "alternative is scikit-learn's digits" in message
    )
