"""CIFAR-100 through TensorFlow Datasets: checked, augmented example by example, and in the order of the loop.

TFDS downloads cifar-100-binary.tar.gz and prepares it once, which needs TensorFlow, in any environment:

    tfds build cifar100 --file_format=array_record --data_dir=DIR

Reading it needs no TensorFlow. A part is held in memory as a whole, 154 MB of pixels for the one to train on.
"""

from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import UserError
from experiments.training.data import Rows, examples, tfds_source

NAME = "cifar100"
CLASSES = 100
SIDE = 32
EXAMPLES = {"train": 50_000, "test": 10_000}
MEAN = (0.5071, 0.4867, 0.4408)
DEVIATION = (0.2675, 0.2565, 0.2761)
PADDING = 4
_ELSEWHERE = (
    "scikit-learn's digits in distillation/digits_table; to prepare it, with TensorFlow installed: "
    "tfds build cifar100 --file_format=array_record, which downloads cifar-100-binary.tar.gz"
)


def load_cifar100(split: str, data_dir: str | None = None) -> dict[str, np.ndarray]:
    """All pictures of a part and the finer ones of their two labels.

    Args:
        split: "train" or "test".
        data_dir: where TFDS's data sets are prepared; None is TFDS's default.

    Returns:
        "image" (n, 32, 32, 3) uint8 and "label" (n,) int32, in the order of TFDS.

    Raises:
        UserError: the data set is not there, or it is not the whole CIFAR-100.
    """
    source = tfds_source(NAME, split, data_dir, embedded=_ELSEWHERE)
    if len(source) != EXAMPLES[split]:
        raise UserError(f"{NAME} ({split}): got {len(source)} examples, expected {EXAMPLES[split]}; prepare it again")
    read = [(np.asarray(example["image"]), int(example["label"])) for example in source]
    for image, label in read:
        if image.dtype != np.uint8 or image.shape != (SIDE, SIDE, 3) or not 0 <= label < CLASSES:
            got = f"{image.dtype}{list(image.shape)} with label {label}"
            raise UserError(f"{NAME} ({split}): got {got}, expected uint8[32, 32, 3] with a label below {CLASSES}")
    return {
        "image": np.stack([image for image, _ in read]),
        "label": np.array([label for _, label in read], np.int32),
    }


def training_examples(part: dict[str, np.ndarray], *, seed: int) -> grain.MapDataset:
    """An endless order of augmented examples.

    Which example stands at an index, and what is drawn for it, depends on (seed, index) alone: a training that goes on
    somewhere sees the pixels that it would have seen.

    Args:
        part: of `load_cifar100`.
        seed: of the order and the augmentation.

    Returns:
        A dataset of {"image": (32, 32, 3) uint8, "label": int32}.
    """
    return examples(Rows(part), seed=seed).random_map(_augmented)


def shifted_and_flipped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture moved by up to four pixels each way, and mirrored with probability 1/2 (He et al., arXiv 1512.03385).

    What comes in from outside is black, before the standardisation.

    Args:
        image: (height, width, colours).
        rng: what is drawn from.

    Returns:
        A picture of the same shape.

    Example:
        >>> image = np.full((8, 8, 3), 9, np.uint8)
        >>> shifted_and_flipped(image, np.random.default_rng(0)).shape
        (8, 8, 3)
    """
    height, width, _ = image.shape
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    top, left = rng.integers(0, 2 * PADDING + 1, size=2)
    crop = padded[top : top + height, left : left + width]
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def standardised(images: jax.Array) -> jax.Array:
    """Pixels less the mean of their colour over all of CIFAR-100, over a deviation; the numbers are CRD's.

    The deviations are those of single pixels; comparisons that take the mean deviation within pictures, about 0.2,
    have other numbers.

    Args:
        images: (B, H, W, 3) uint8.

    Returns:
        float32.
    """
    mean, deviation = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (MEAN, DEVIATION))
    return (images.astype(jnp.float32) / 255 - mean) / deviation


def _augmented(example: Any, rng: np.random.Generator) -> dict[str, Any]:
    return {"image": shifted_and_flipped(example["image"], rng), "label": example["label"]}
