"""Generated sentences that TFDS reads as LM1B: its own builder, features, file format and version."""

import numpy as np
import pytest

COUNTS = {"train": 1500, "test": 600}
WORDS = ("the", "of", "market", "rose", "said", "naïve", "percent", ",", "in", "London", "and", "fell", "Friday")


def sentence(split, number):
    """A sentence that depends on its split and number alone."""
    rng = np.random.default_rng([number, split == "test"])
    return " ".join(rng.choice(WORDS, size=rng.integers(1, 20))) + " ."


def prepare(folder, counts=COUNTS):
    """Prepare the data set in a folder, without TensorFlow."""
    import tensorflow_datasets as tfds

    def generated(split):
        for i in range(counts[split]):
            yield f"{split}_{i}", {"text": sentence(split, i)}

    builder = tfds.builder_cls("lm1b")
    with pytest.MonkeyPatch.context() as patch:
        # All but where the sentences come from is the real builder's.
        patch.setattr(builder, "_split_generators", lambda self, _: {split: generated(split) for split in counts})
        builder(data_dir=folder, file_format="array_record").download_and_prepare(file_format="array_record")
    return str(folder)
