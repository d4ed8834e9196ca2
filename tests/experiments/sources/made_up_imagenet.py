"""A few generated pictures that TFDS reads as ImageNet-1k: its own builder, features, file format and version."""

import io

import numpy as np
import pytest
from PIL import Image

COUNTS = {"train": 12, "validation": 6}


def picture(number, size, mode="RGB"):
    """A smooth random picture as a JPEG file; what it shows depends on its number alone."""
    small = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG")
    file.seek(0)
    return file


def prepare(folder, counts=COUNTS):
    """Prepare the data set in a folder, without TensorFlow: pictures of several sizes, one of them grey."""
    import tensorflow_datasets as tfds

    def generated(split):
        for i in range(counts[split]):
            name, size = f"{split}_{i}.JPEG", ((320, 240), (200, 333), (500, 60))[i % 3]
            image = picture(i, size, "L" if i == 3 else "RGB")
            yield name, {"image": image, "label": (i * 321) % 1000, "file_name": name}

    builder = tfds.builder_cls("imagenet2012")
    with pytest.MonkeyPatch.context() as patch:
        # All but where the pictures come from is the real builder's.
        patch.setattr(builder, "_split_generators", lambda self, _: {split: generated(split) for split in counts})
        builder(data_dir=folder, file_format="array_record").download_and_prepare(file_format="array_record")
    return str(folder)
