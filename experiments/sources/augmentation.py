"""Random changes of one picture before it is trained on: crop, flip and RandAugment, on PIL.

The operations are Pillow's own; what is here is how they are drawn. Crops are those of Inception's training (Szegedy
et al., arXiv 1409.4842). RandAugment (Cubuk et al., arXiv 1909.13719) is the variant that ImageNet recipes write as
`rand-m9-mstd0.5-inc1`: two operations per picture, each applied with probability 1/2, at a magnitude of 9 +- 0.5 out
of 10, and all of them the stronger the larger the magnitude. Magnitude 10 would leave no bit when posterising; one is
left.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

RESAMPLING = Image.Resampling.BICUBIC
FILL = (124, 116, 104)
"""Colour of what comes in from outside a picture: the mean of ImageNet."""
MOST = 10.0
"""Largest magnitude."""
_ATTEMPTS = 10

Operation = Callable[[Image.Image, float, int], Image.Image]


def random_crop(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A random part of a picture, resized to a square.

    The part's share of the area is uniform, the logarithm of its width over its height too. Ten parts are drawn until
    one fits into the picture; if none does it is the largest one in the middle whose aspect is allowed.

    Args:
        image: any size.
        rng: what is drawn from.
        size: pixels of the result along each side.
        area: smallest and largest share of the area.
        aspect: smallest and largest width over height.

    Returns:
        The square.

    Example:
        >>> random_crop(Image.new("RGB", (50, 30)), np.random.default_rng(0), size=8).size
        (8, 8)
    """
    left, top, width, height = _part(image.size, rng, area, aspect)
    # Cropped first: resizing with a box would mix in pixels beside it.
    return image.crop((left, top, left + width, top + height)).resize((size, size), RESAMPLING)


def _part(
    size: tuple[int, int], rng: np.random.Generator, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random part."""
    for _ in range(_ATTEMPTS):
        pixels = size[0] * size[1] * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        width, height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < width <= size[0] and 0 < height <= size[1]:
            left = int(rng.integers(size[0] - width + 1))
            return left, int(rng.integers(size[1] - height + 1)), width, height
    width = min(size[0], max(1, round(size[1] * aspect[1])))
    height = min(size[1], max(1, round(size[0] / aspect[0])))
    return (size[0] - width) // 2, (size[1] - height) // 2, width, height


def random_flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture or, with probability 1/2, its mirror image.

    Args:
        image: any size.
        rng: what is drawn from.

    Returns:
        The picture.
    """
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def centre_crop(image: Image.Image, *, size: int, share: float = 0.875) -> Image.Image:
    """The middle of a picture, as models are evaluated on.

    Args:
        image: any size.
        size: pixels of the result along each side.
        share: of the shorter side that is kept: it is resized to size / share pixels.

    Returns:
        The square.

    Example:
        >>> centre_crop(Image.new("RGB", (500, 375)), size=224).size
        (224, 224)
    """
    shorter, resized = min(image.size), round(size / share)
    width, height = (resized * side // shorter for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), RESAMPLING).crop((left, top, left + size, top + size))


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, RESAMPLING, fillcolor=FILL)


def _add_to_dark(image: Image.Image, added: int) -> Image.Image:
    """Add to all values below 128."""
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """A property of the picture made weaker or stronger by up to nine tenths; a factor of 1 changes nothing."""
    return lambda image, strength, sign: kind(image).enhance(max(0.1, 1 + 0.9 * sign * strength))


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "auto_contrast": lambda image, strength, sign: ImageOps.autocontrast(image),
        "equalise": lambda image, strength, sign: ImageOps.equalize(image),
        "invert": lambda image, strength, sign: ImageOps.invert(image),
        "rotate": lambda image, strength, sign: image.rotate(30 * sign * strength, RESAMPLING, fillcolor=FILL),
        "posterise": lambda image, strength, sign: ImageOps.posterize(image, max(1, 4 - int(4 * strength))),
        "solarise": lambda image, strength, sign: ImageOps.solarize(image, 256 - int(256 * strength)),
        "add_to_dark": lambda image, strength, sign: _add_to_dark(image, int(110 * strength)),
        "colour": _enhanced(ImageEnhance.Color),
        "contrast": _enhanced(ImageEnhance.Contrast),
        "brightness": _enhanced(ImageEnhance.Brightness),
        "sharpness": _enhanced(ImageEnhance.Sharpness),
        "shear_x": lambda image, strength, sign: _affine(image, (1, 0.3 * sign * strength, 0, 0, 1, 0)),
        "shear_y": lambda image, strength, sign: _affine(image, (1, 0, 0, 0.3 * sign * strength, 1, 0)),
        "translate_x": lambda image, strength, sign: _affine(
            image, (1, 0, 0.45 * sign * strength * image.width, 0, 1, 0)
        ),
        "translate_y": lambda image, strength, sign: _affine(
            image, (1, 0, 0, 0, 1, 0.45 * sign * strength * image.height)
        ),
    }
)
"""Name -> (picture, strength in [0, 1], sign) -> picture. The sign is the direction of those that have one."""


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    operations: int = 2,
    probability: float = 0.5,
    magnitude: float = 9.0,
    deviation: float = 0.5,
) -> Image.Image:
    """Random operations on a picture, drawn with replacement.

    Args:
        image: RGB.
        rng: what is drawn from.
        operations: how many are drawn.
        probability: of applying each of them.
        magnitude: mean of the magnitude, which is then cut to [0, 10].
        deviation: standard deviation of the magnitude.

    Returns:
        A picture of the same size.

    Raises:
        ValueError: the picture is not RGB.

    Example:
        >>> grey = Image.new("RGB", (4, 4), (9, 9, 9))
        >>> rand_augment(grey, np.random.default_rng(0), operations=0).getpixel((0, 0))
        (9, 9, 9)
    """
    if image.mode != "RGB":
        raise ValueError(f"image: got mode {image.mode}, expected RGB")
    for name in rng.choice(list(OPERATIONS), size=operations):
        applied, level, sign = rng.random() < probability, rng.normal(magnitude, deviation), rng.choice((-1, 1))
        if applied:
            image = OPERATIONS[name](image, min(max(level, 0.0), MOST) / MOST, int(sign))
    return image
