"""ImageNet-1k through TensorFlow Datasets: checked, augmented example by example, and in the order of the loop.

The data set is licensed and is not downloaded: whoever has its two archives prepares it once, which needs TensorFlow,
in any environment:

    tfds build imagenet2012 --file_format=array_record --data_dir=DIR --manual_dir=FOLDER_OF_THE_ARCHIVES

Reading it needs no TensorFlow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.errors import UserError
from experiments.sources.augmentation import centre_crop, rand_augment, random_crop, random_flip
from experiments.training.data import examples, tfds_source

NAME = "imagenet2012"
CLASSES = 1000
EXAMPLES = {"train": 1_281_167, "validation": 50_000}
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
_ELSEWHERE = (
    "scikit-learn's digits in lightnet/classification; to prepare it, with TensorFlow installed: "
    "tfds build imagenet2012 --file_format=array_record --manual_dir=FOLDER, which holds ILSVRC2012_img_train.tar and "
    "ILSVRC2012_img_val.tar"
)


def load_imagenet(split: str, data_dir: str | None = None) -> Any:
    """Pictures and labels of a split, by random access.

    Args:
        split: "train" or "validation".
        data_dir: where TFDS's data sets are prepared; None is TFDS's default.

    Returns:
        A source of {"image": (H, W, 3) uint8, "label": 0..999, "file_name": bytes}.

    Raises:
        UserError: the data set is not prepared, or it is not the whole ImageNet-1k.
    """
    source = tfds_source(NAME, split, data_dir, embedded=_ELSEWHERE)
    if len(source) != EXAMPLES[split]:
        raise UserError(f"{NAME} ({split}): got {len(source)} examples, expected {EXAMPLES[split]}; prepare it again")
    first = source[0]
    image, label = np.asarray(first["image"]), int(first["label"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not 0 <= label < CLASSES:
        got = f"{image.dtype}{list(image.shape)} with label {label}"
        raise UserError(f"{NAME} ({split}): got {got}, expected uint8[H, W, 3] with a label below {CLASSES}")
    return source


@dataclass(frozen=True)
class Augmentation:
    """What happens to a picture before it is trained on: crop, flip, RandAugment.

    Attributes:
        size: pixels along each side of what comes out.
        operations: see `experiments.sources.augmentation.rand_augment`, as the following.
        probability: of each operation.
        magnitude: mean of the magnitude.
        deviation: of the magnitude.
    """

    size: int
    operations: int
    probability: float
    magnitude: float
    deviation: float

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draw from `rng`, and apply."""
        image = random_flip(random_crop(image, rng, size=self.size), rng)
        return rand_augment(
            image,
            rng,
            operations=self.operations,
            probability=self.probability,
            magnitude=self.magnitude,
            deviation=self.deviation,
        )


def training_examples(
    source: Any, augment: Callable[[Image.Image, np.random.Generator], Image.Image], *, seed: int
) -> grain.MapDataset:
    """An endless order of augmented examples.

    Which example stands at an index, and what is drawn for it, depends on (seed, index) alone: a training that goes on
    somewhere sees the pixels that it would have seen.

    Args:
        source: of `load_imagenet`.
        augment: (picture, generator) -> picture.
        seed: of the order and the augmentation.

    Returns:
        A dataset of {"image": (size, size, 3) uint8, "label": int32}.
    """
    return examples(source, seed=seed).random_map(partial(_augmented, augment))


def evaluation_examples(source: Any, size: int) -> grain.MapDataset:
    """All examples in the order of the source, the middle of each picture.

    Args:
        source: of `load_imagenet`.
        size: pixels along each side.

    Returns:
        A dataset of {"image": (size, size, 3) uint8, "label": int32}. The 50,000 pictures of the validation part are
        7.5 GB at 224 pixels.
    """
    return grain.MapDataset.source(source).map(partial(_middle, size))


def standardised(images: jax.Array) -> jax.Array:
    """Pixels less their mean over all of ImageNet, over their standard deviation, by colour.

    Args:
        images: (B, H, W, 3) uint8.

    Returns:
        float32.
    """
    mean, deviation = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (MEAN, DEVIATION))
    return (images.astype(jnp.float32) / 255 - mean) / deviation


def _augmented(augment: Callable[..., Image.Image], example: Any, rng: np.random.Generator) -> dict[str, Any]:
    return _example(augment(Image.fromarray(example["image"]), rng), example["label"])


def _middle(size: int, example: Any) -> dict[str, Any]:
    return _example(centre_crop(Image.fromarray(example["image"]), size=size), example["label"])


def _example(image: Image.Image, label: Any) -> dict[str, Any]:
    return {"image": np.asarray(image), "label": np.int32(label)}
