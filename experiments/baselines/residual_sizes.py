"""The sizes of residual networks on CIFAR by their names: resnet20, resnet8x4, wrn-40-2.

The names are those of comparisons of distillation on CIFAR-100 since CRD (Tian et al., arXiv 1910.10699). Importing
this module imports no JAX, so that a configuration can check its names.
"""

import re
from typing import NamedTuple


class Size(NamedTuple):
    """A residual network of three stages.

    Attributes:
        kind: "resnet", or "wrn" for a wide one.
        blocks: per stage, of two convolutions each.
        widths: channels behind the first convolution and of the three stages.
    """

    kind: str
    blocks: int
    widths: tuple[int, int, int, int]


def read_size(name: str, field: str) -> Size:
    """The size of a name.

    A `resnet` of depth d has (d - 2) / 6 blocks per stage (He et al., arXiv 1512.03385, section 4.2), with widths 16,
    16, 32 and 64, or of "x4" 32, 64, 128 and 256. A `wrn` of depth d and factor k has (d - 4) / 6 blocks per stage
    (Zagoruyko and Komodakis, arXiv 1605.07146, table 1), with widths 16, 16 k, 32 k and 64 k.

    Args:
        name: such as resnet56, resnet32x4, wrn-16-2.
        field: for the error message.

    Returns:
        It.

    Raises:
        ValueError: there is no such network.

    Example:
        >>> read_size("resnet8x4", "student")
        Size(kind='resnet', blocks=1, widths=(32, 64, 128, 256))
        >>> read_size("wrn-40-2", "teacher")
        Size(kind='wrn', blocks=6, widths=(16, 32, 64, 128))
    """
    if found := re.fullmatch(r"resnet(\d+)(x4)?", name):
        kind, fixed, widths = "resnet", 2, (32, 64, 128, 256) if found[2] else (16, 16, 32, 64)
    elif found := re.fullmatch(r"wrn-(\d+)-([1-9]\d*)", name):
        factor = int(found[2])
        kind, fixed, widths = "wrn", 4, (16, 16 * factor, 32 * factor, 64 * factor)
    blocks, rest = divmod(int(found[1]) - fixed, 6) if found else (0, 0)
    if blocks < 1 or rest:
        raise ValueError(
            f"{field}: got {name!r}, expected resnetD or resnetDx4 with D = 6 n + 2, or wrn-D-K with D = 6 n + 4"
        )
    return Size(kind, blocks, widths)
