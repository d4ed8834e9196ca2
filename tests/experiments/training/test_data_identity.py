"""What identifies data, and TensorFlow Datasets without TensorFlow."""

import io
import os
import subprocess
import sys
import textwrap

import grain
import numpy as np
import pytest
from PIL import Image

from experiments.errors import UserError
from experiments.training.data import data_hash, examples, fingerprint, tfds_source


def numbers(count=10):
    """One column that names its rows."""
    return {"x": np.arange(count)}


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.arange(4) + 1},
        {"x": np.arange(4.0)},
        {"x": np.arange(4).reshape(2, 2)},
        {"y": np.arange(4)},
        {"x": np.arange(4).view(np.uint64)},
    ],
)
def test_fingerprint_sees_values_dtype_shape_and_name(other):
    assert fingerprint(other) != fingerprint({"x": np.arange(4)})
    assert fingerprint({"x": np.arange(8)[::2]}) == fingerprint({"x": np.array([0, 2, 4, 6])})


def changed(count=64, at=None, dtype=np.int64, shape=(), name="x"):
    """Columns with one difference."""
    column = np.arange(count, dtype=dtype)
    if at is not None:
        column[at] += 1
    return {name: column.reshape(-1, *shape)}


@pytest.mark.parametrize(
    "other",
    [
        lambda columns: columns(at=17),
        lambda columns: columns(count=65),
        lambda columns: columns(dtype=np.int32),
        lambda columns: columns(shape=(1,)),
        lambda columns: columns(name="y"),
    ],
)
def test_identity_of_columns_and_of_datasets_tells_what_differs(other):
    assert data_hash(changed()) == data_hash(changed()) != data_hash(other(changed))
    whole = [
        grain.MapDataset.source([{k: v[i] for k, v in c.items()} for i in range(len(next(iter(c.values()))))])
        for c in (changed(), changed(), other(changed))
    ]
    one, two, third = (data_hash(dataset.shuffle(seed=3)) for dataset in whole)
    assert one == two
    assert one != third


def test_identity_tells_the_order_of_endless_data():
    reference = data_hash(examples(numbers(50), seed=0))
    assert reference == data_hash(examples(numbers(50), seed=0))
    assert (
        len(
            {
                reference,
                data_hash(examples(numbers(50), seed=1)),
                data_hash(examples(numbers(50), seed=0, shuffle=False)),
            }
        )
        == 3
    )
    assert reference != data_hash(examples(numbers(51), seed=0))
    equal, more, other = (np.zeros(50, np.int32), np.zeros(51, np.int32), np.zeros(50, np.float32))
    assert len({data_hash(examples({"x": column}, seed=0)) for column in (equal, more, other)}) == 3
    assert data_hash(examples(numbers(1), seed=0)) != data_hash(examples({"x": np.ones(1, int)}, seed=0))


@pytest.mark.slow
def test_identity_of_texts_is_the_same_in_another_process():
    code = """
        import numpy as np
        from experiments.training.data import data_hash, examples
        texts = np.array(["one", b"two", ("three", 3)], object)
        print(data_hash({"t": texts}), data_hash(examples({"t": texts, "n": np.arange(3)}, seed=5)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environments = [os.environ | {"PYTHONHASHSEED": str(seed)} for seed in (1, 2)]
    outputs = [subprocess.run(command, env=env, capture_output=True, text=True).stdout for env in environments]
    assert outputs[0] == outputs[1] and len(outputs[0].split()) == 2, outputs


def test_identity_reads_few_examples():
    class Counting:
        reads = 0

        def __len__(self):
            return 10**7

        def __getitem__(self, index):
            Counting.reads += 1
            return index

    data_hash(examples(Counting(), seed=0))
    assert 20 < Counting.reads < 65
    with pytest.raises(UserError, match="got an IterDataset"):
        data_hash(examples(numbers(), seed=0).to_iter_dataset())


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
    seen = np.stack([examples(source, seed=0)[i]["image"] for i in range(8)])
    assert seen.shape == (8, 8, 8, 1) and len({image.mean() for image in seen}) == 8
    assert "tensorflow" not in sys.modules


def test_an_absent_data_set_names_the_embedded_alternative(tmp_path):
    with pytest.raises(UserError) as error:
        tfds_source("no_such_set", "train", str(tmp_path), embedded="scikit-learn's digits")
    message = str(error.value)
    assert (
        "\n" not in message and "'no_such_set' (train)" in message and "alternative is scikit-learn's digits" in message
    )
