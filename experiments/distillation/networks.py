"""The small networks that teach and learn here, called by their names: "mlp-256-256", "conv-16-32"."""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax

from experiments.distillation.digits import CLASSES, read_network

IMAGE = (1, 8, 8, 1)


class Outputs(NamedTuple):
    """What a network says of a batch.

    Attributes:
        logits: (B, classes).
        features: of the last hidden layer, (B, width), or (B, height, width, channels) of a convolution.
        projected: the features of all places in the width of a teacher's; None without a projection.
    """

    logits: jax.Array
    features: jax.Array
    projected: jax.Array | None = None


class Network(nn.Module):
    """Hidden layers with ReLU, dense ones or convolutions of 3 x 3, and a linear head on the features of all places.

    Attributes:
        kind: "mlp" or "conv".
        widths: of the hidden layers.
        projection: width of `Outputs.projected`; 0 has none.
    """

    kind: str
    widths: tuple[int, ...]
    projection: int = 0

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        """Outputs of images (B, height, width, 1)."""
        x = images if self.kind == "conv" else images.reshape(len(images), -1)
        for number, width in enumerate(self.widths):
            layer = nn.Conv(width, (3, 3)) if self.kind == "conv" else nn.Dense(width)
            if self.kind == "conv" and number:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.relu(layer(x))
        flat = x.reshape(len(x), -1)
        projected = nn.Dense(self.projection, name="projection")(flat) if self.projection else None
        return Outputs(nn.Dense(CLASSES, name="head")(flat), x, projected)


def network(name: str, projection: int = 0) -> Network:
    """The network of a name.

    Args:
        name: kind and widths.
        projection: width into which the features are projected beside; 0 has none.

    Returns:
        The module.

    Raises:
        ValueError: there is no such network.

    Example:
        >>> import jax.numpy as jnp
        >>> outputs, _ = network("mlp-16", 5).init_with_output(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
        >>> [x.shape for x in outputs]
        [(2, 10), (2, 16), (2, 5)]
    """
    return Network(*read_network(name, "network"), projection)


def say(net: Network, variables: Any, images: Any) -> Outputs:
    """What a network of these variables says of images."""
    return Outputs(*cast(Outputs, net.apply(variables, images)))
