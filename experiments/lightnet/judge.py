"""A small convolutional classifier that judges generated pictures: its features, and which class it sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.config import TrainConfig
from experiments.training.together import one_of, train_together

Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class FeatureNetwork(nn.Module):
    """Two convolutions, a hidden layer whose values are the features, and logits.

    Attributes:
        num_classes: number of logits.
        features: width of the hidden layer.

    Example:
        >>> network = FeatureNetwork(num_classes=3)
        >>> (features, logits), _ = jax.jit(network.init_with_output)(jax.random.key(0), jnp.ones((5, 8, 8, 1)))
        >>> features.shape, logits.shape
        ((5, 32), (5, 3))
    """

    num_classes: int
    features: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features (B, features) and logits (B, classes) of pictures (B, H, W, C)."""
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=(2, 2))(x))
        hidden = nn.relu(nn.Dense(self.features)(x.reshape(len(x), -1)))
        return hidden, nn.Dense(self.num_classes)(hidden)


def trained_judge(
    config: TrainConfig, pictures: np.ndarray, labels: np.ndarray, num_classes: int, folder: Path
) -> Judge:
    """Train the classifier, always with the same seed, so that all that is judged is judged by one.

    Args:
        config: of the training, without an average.
        pictures: (n, H, W, C).
        labels: (n,).
        num_classes: number of classes.
        folder: for checkpoints and metrics.

    Returns:
        Pictures -> (features, classes).
    """
    network = FeatureNetwork(num_classes)

    def loss(params: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
        del key
        logits = network.apply({"params": params}, jnp.asarray(pictures)[rows])[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)[rows]).mean()

    def init(key: jax.Array) -> Any:
        return network.init(key, jnp.asarray(pictures[:1]))["params"]

    outcome = train_together(config, init, loss, len(labels), folder, seeds=(0,), label="judge")
    params = one_of(outcome.params, 0)

    @jax.jit
    def judged(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs: Any = network.apply({"params": params}, x)
        return outputs[0], outputs[1].argmax(axis=-1)

    def judge(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, classes = judged(jnp.asarray(x, jnp.float32))
        return np.asarray(features), np.asarray(classes)

    return judge
