"""A few generated pictures that TFDS reads as CIFAR-100: its own builder, features, file format and version."""

import io

import numpy as np
import pytest
from PIL import Image

COUNTS = {"train": 24, "test": 10}


def picture(split, number):
    """Random pixels that depend on the part and the number alone."""
    return np.random.default_rng([len(split), number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file


def label(number):
    return number * 37 % 100


def prepare(folder, counts=COUNTS):
    """Prepare the data set in a folder, without TensorFlow and without a download."""
    import tensorflow_datasets as tfds

    def generated(split):
        for i in range(counts[split]):
            labels = {"label": label(i), "coarse_label": i % 20}
            yield i, {"id": f"{split}_{i:05d}", "image": png(picture(split, i)), **labels}

    builder = tfds.builder_cls("cifar100")
    with pytest.MonkeyPatch.context() as patch:
        # All but where the pictures come from is the real builder's.
        patch.setattr(builder, "_split_generators", lambda self, _: {split: generated(split) for split in counts})
        builder(data_dir=folder, file_format="array_record").download_and_prepare(file_format="array_record")
    return str(folder)
