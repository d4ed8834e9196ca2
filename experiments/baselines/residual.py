"""Residual networks on images of 32 x 32 pixels, as comparisons of distillation have them: ResNet and wide ResNet.

ResNet: He et al. (arXiv 1512.03385), where a block that changes the shape has a convolution of 1 x 1 and its own
normalisation on the way around it. Wide ResNet: Zagoruyko and Komodakis (arXiv 1605.07146), whose blocks normalise
before they convolve. Both in the form that CRD (arXiv 1910.10699) compares: convolutions without bias, drawn from
N(0, 2 / fan-out); the kernel of the head is uniform within one over the square root of its inputs, its bias 0.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from experiments.baselines.residual_sizes import Size, read_size

STRIDES = (1, 2, 2)
_conv = partial(nn.Conv, use_bias=False, kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"))


class Seen(NamedTuple):
    """What a network makes of images.

    Attributes:
        logits: (B, classes).
        features: what the head reads (B, width).
        maps: behind the first convolution and the three stages, (B, height, width, channels) each; of a ResNet after
            its ReLU, of a wide one before the normalisation that follows.
    """

    logits: jax.Array
    features: jax.Array
    maps: tuple[jax.Array, ...]


def _norm(train: bool) -> nn.Module:
    """Batch normalisation whose running mean takes a tenth of each batch."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)


class Block(nn.Module):
    """A block of a ResNet: relu(x' + norm(conv(relu(norm(conv(x)))))), x' = norm(conv1x1(x)) where the shape changes.

    Attributes:
        width: channels.
        stride: of the first convolution.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, height, width, channels) -> the same, but for the stride and the channels."""
        y = nn.relu(_norm(train)(_conv(self.width, (3, 3), self.stride, padding=1)(x)))
        y = _norm(train)(_conv(self.width, (3, 3), padding=1)(y))
        if self.stride != 1 or x.shape[-1] != self.width:
            x = _norm(train)(_conv(self.width, (1, 1), self.stride, padding=0)(x))
        return nn.relu(x + y)


class WideBlock(nn.Module):
    """A block of a wide ResNet: x' + conv(relu(norm(conv(z)))) with z = relu(norm(x)).

    x' is x, or conv1x1(z) where the channels change.

    Attributes:
        width: channels.
        stride: of the first convolution.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, height, width, channels) -> the same, but for the stride and the channels."""
        z = nn.relu(_norm(train)(x))
        y = nn.relu(_norm(train)(_conv(self.width, (3, 3), self.stride, padding=1)(z)))
        y = _conv(self.width, (3, 3), padding=1)(y)
        if x.shape[-1] != self.width:
            x = _conv(self.width, (1, 1), self.stride, padding=0)(z)
        return x + y


class ResidualNetwork(nn.Module):
    """A first convolution, three stages of blocks, the mean over places and a linear head.

    Attributes:
        size: kind, blocks and widths.
        classes: of the head.
    """

    size: Size
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Seen:
        """Logits and features.

        Args:
            images: (B, 32, 32, 3).
            train: whether the mean and variance are those of the batch, which then enter the running ones, the
                collection "batch_stats".

        Returns:
            Them.
        """
        wide, (first, *widths) = self.size.kind == "wrn", self.size.widths
        x = _conv(first, (3, 3), padding=1)(images)
        maps = [x := x if wide else nn.relu(_norm(train)(x))]
        block: Any = WideBlock if wide else Block
        for width, stride in zip(widths, STRIDES, strict=True):
            for number in range(self.size.blocks):
                x = block(width, 1 if number else stride)(x, train)
            maps.append(x)
        last = nn.relu(_norm(train)(x)) if wide else x
        features = last.mean(axis=(1, 2))
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return Seen(nn.Dense(self.classes, kernel_init=uniform, name="head")(features), features, tuple(maps))


def residual_network(name: str, classes: int) -> ResidualNetwork:
    """The network of a name.

    Args:
        name: see `experiments.baselines.residual_sizes.read_size`.
        classes: of the head.

    Returns:
        The module.

    Raises:
        ValueError: there is no such network.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = jax.eval_shape(
        ...     lambda key: residual_network("wrn-10-1", 100).init_with_output(key, jnp.zeros((2, 32, 32, 3)))[0],
        ...     jax.random.key(0),
        ... )
        >>> seen.logits.shape, seen.features.shape, [x.shape[1:] for x in seen.maps]
        ((2, 100), (2, 64), [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64)])
    """
    return ResidualNetwork(read_size(name, "network"), classes)
